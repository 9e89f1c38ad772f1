import DefaultGuest
import Glibc
import TestSupport
import Testing

extension EndToEnd {
    /// What the user can get wrong: one line that names what was given, status 2, and nothing left behind.
    @Suite struct BadInput {
        /// Runs the command in an empty directory and expects one line with all of `parts`.
        private func expect(
            _ parts: [String], _ arguments: [String], output: ChildProcess.Output = .pipe,
            sourceLocation: SourceLocation = #_sourceLocation
        ) throws {
            let scratch = ScratchDirectory()
            let child = try Boot.start(
                arguments, environment: ["TMPDIR": scratch.path], directory: scratch.path, output: output)
            #expect(child.wait() == .exited(2), "\(arguments): \(Boot.account(child))", sourceLocation: sourceLocation)
            #expect(child.outputText.suffix(500) == "", "\(arguments)", sourceLocation: sourceLocation)
            let text = child.errorText
            #expect(
                text.hasPrefix("martlet: error: ") && text.hasSuffix("\n"), "\(text)", sourceLocation: sourceLocation)
            #expect(child.errors.occurrences(of: "\n") == 1, "\(arguments): \(text)", sourceLocation: sourceLocation)
            for part in parts {
                #expect(text.contains(part), "no '\(part)' in: \(text)", sourceLocation: sourceLocation)
            }
            #expect(scratch.names.isEmpty, "left behind: \(scratch.names)", sourceLocation: sourceLocation)
            #expect(!child.hasLeftProcesses, sourceLocation: sourceLocation)
        }

        @Test(arguments: [
            (["--memory", "0"], ["--memory", "512M"]),
            (["--memory", "5000"], ["5000", "4 KiB"]),
            (["--memory", "513"], ["513"]),
            (["--memory", ""], ["--memory", "512M"]),
            (["--memory", "lots"], ["lots", "512M"]),
            (["--memory", "-1M"], ["--memory"]),
            (["--memory", "512X"], ["512X"]),
            (["--memory", "99999999999999999999G"], ["99999999999999999999G"]),
            (["--memory", "size=1G,size=2G"], ["twice"]),
            (["--memory", "size=1G,colour=blue"], ["colour"]),
            (["--cpus", "0"], ["--cpus", "0 processors", "1 to 254"]),
            (["--cpus", "255"], ["255", "1 to 254"]),
            (["--cpus", "99999999999999999999"], ["1 to 254"]),
            (["--cpus", "two"], ["two"]),
            (["--cpus", "-1"], ["--cpus"]),
            (["--cpus", "1.5"], ["1.5"]),
            (["--cpus", ""], ["--cpus"]),
            (["--cpus", "boot=4,max=2"], ["boot=4", "max=2"]),
            (["--cpus", "max=2"], ["boot="]),
            (["--cpus", "boot=1,boot=2"], ["twice"]),
            (["--unpack", "nobody"], ["nobody", "host", "guest"]),
            (["--kernel"], ["--kernel"]),
            (["--colour", "blue"], ["--colour"]),
            (["extra"], ["extra"])
        ])
        func options(arguments: [String], parts: [String]) throws { try expect(parts, ["run"] + arguments) }

        @Test func subcommands() throws { try expect(["fly"], ["fly"]) }

        @Test func kernelFiles() throws {
            let scratch = ScratchDirectory()
            try expect(
                ["\(scratch.path)/none", "No such file", "--kernel"], ["run", "--kernel", "\(scratch.path)/none"])
            try expect([scratch.path, "directory"], ["run", "--kernel", scratch.path])
            let empty = scratch.write([], to: "empty")
            try expect([empty, "empty"], ["run", "--kernel", empty])
            let text = scratch.write(Array("This is no kernel.\n".utf8), to: "text")
            try expect([text, "bzImage", "ELF"], ["run", "--kernel", text])
            let noise = scratch.write((0..<100_000).map { UInt8(truncatingIfNeeded: $0 &* 167 ^ $0 >> 7) }, to: "noise")
            try expect([noise, "bzImage"], ["run", "--kernel", noise])
            let script = scratch.write(Array("#!/bin/sh\n".utf8), to: "script")
            try expect([script, "script"], ["run", "--kernel", script])
            let elf = scratch.write(Array("\u{7F}ELF".utf8), to: "elf")
            try expect([elf, "truncated"], ["run", "--kernel", elf])
        }

        /// To root every file is readable.
        @Test(.enabled(if: geteuid() != 0, "root may read every file"))
        func unreadableKernel() throws {
            let scratch = ScratchDirectory()
            let path = scratch.write([1], to: "secret")
            chmod(path, 0)
            try expect([path, "Permission denied"], ["run", "--kernel", path])
        }

        @Test(.needsGuests, arguments: GuestFlavour.allCases)
        func damagedKernels(flavour: GuestFlavour) throws {
            let scratch = ScratchDirectory()
            let guest = try #require(MartletCommand.guest(flavour))
            let kernel = try #require(ScratchDirectory.contents(of: guest.kernel.string))
            for count in [0x180, 0x210, 0x260, 10_000, kernel.count / 2, kernel.count * 9 / 10] {
                let path = scratch.write(Array(kernel[..<count]), to: "truncated-\(count)")
                try expect([path], ["run", "--kernel", path])
            }
            for fraction in [3, 5, 7] {
                var damaged = kernel
                for index in kernel.count / fraction..<kernel.count / fraction + 64 { damaged[index] ^= 0x5A }
                let path = scratch.write(damaged, to: "damaged-\(fraction)")
                try expect([path, "damaged"], ["run", "--kernel", path])
            }
            let unpacked = try Repacked(flavour).unpacked
            let path = scratch.write(Array(unpacked[..<(unpacked.count / 2)]), to: "vmlinux")
            try expect([path, "truncated"], ["run", "--kernel", path])
        }

        @Test(.needsGuests) func initramfs() throws {
            let scratch = ScratchDirectory()
            let kernel = try #require(MartletCommand.guest(.cloud)).kernel.string
            let none = "\(scratch.path)/none"
            try expect([none, "No such file"], ["run", "--kernel", kernel, "--initramfs", none])
            let empty = scratch.write([], to: "empty")
            try expect([empty, "empty"], ["run", "--kernel", kernel, "--initramfs", empty])
            for size in [100 << 20, 300 << 20] {
                let large = scratch.write([], to: "large")
                truncate(large, size)
                try expect(
                    [large, "more memory"], ["run", "--kernel", kernel, "--memory", "128M", "--initramfs", large])
            }
        }

        @Test(.needsGuests, arguments: ["4K", "1M", "8M", "32M", "33T", "1000000T"])
        func memory(size: String) throws {
            let kernel = try #require(MartletCommand.guest(.cloud)).kernel.string
            try expect(["memory"], ["run", "--kernel", kernel, "--memory", size])
        }

        /// More than the host can map, though a guest could address it.
        @Test(.needsGuests) func memoryTheHostCannotMap() throws {
            let kernel = try #require(MartletCommand.guest(.cloud)).kernel.string
            let command = try #require(MartletCommand.path)
            let child = try ChildProcess([
                "/bin/sh", "-c", "ulimit -v 4194304; exec \"$0\" run --kernel \"$1\" --memory 8G", command, kernel
            ])
            #expect(child.wait() == .exited(2), Boot.account(child))
            #expect(child.errors.occurrences(of: "\n") == 1, "\(child.errorText)")
            #expect(child.errorText.contains("8G") && child.errorText.contains("--memory"), "\(child.errorText)")
        }

        @Test(.needsGuests) func commandLine() throws {
            let kernel = try #require(MartletCommand.guest(.cloud)).kernel.string
            try expect(
                ["command line", "3000"],
                ["run", "--kernel", kernel, "--cmdline", String(repeating: "x", count: 3000)])
        }

        @Test(
            .needsGuests,
            arguments: [["run"], ["run", "--append", "martlet.batch"], ["doctor"], ["--help"], ["guest", "list"]])
        func closedOutput(arguments: [String]) throws {
            try expect(["standard output", "closed"], arguments, output: .closed)
        }

        @Test func noGuestAtAll() throws {
            let scratch = ScratchDirectory()
            let child = try Boot.start(
                ["run"], environment: ["XDG_CACHE_HOME": scratch.path, "HOME": scratch.path])
            #expect(child.wait() == .exited(2))
            #expect(child.errorText.contains("martlet guest build"), "\(child.errorText)")
            #expect(child.errors.occurrences(of: "\n") == 1)
            #expect(scratch.names.isEmpty)
        }
    }
}
