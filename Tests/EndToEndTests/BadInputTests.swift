import DefaultGuest
import Glibc
import Machine
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
            (["--memory", "size="], ["size=", "512M"]),
            (["--memory", "1.5G"], ["1.5G", "512M"]),
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
            (["--kernel", ""], ["kernel ''", "--kernel"]),
            (["--kernel", "/dev/null", "--kernel"], ["--kernel"]),
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

        @Test(.needsGuests, arguments: GuestFlavour.allCases)
        func damagedKernels(flavour: GuestFlavour) throws {
            let scratch = ScratchDirectory()
            let guest = try #require(MartletCommand.guest(flavour))
            let kernel = try #require(ScratchDirectory.contents(of: guest.kernel.string))
            // The signature behind the kernel proper does not count.
            let size = try kernel.span.bytes.kernelByteCount
            #expect(size < kernel.count && size > kernel.count - 10_000)
            for (count, part) in [
                (0x180, "without a Linux header"), (0x206, "truncated"), (0x260, "truncated"), (10_000, "truncated"),
                (size / 2, "truncated"), (size - 16, "truncated")
            ] {
                let path = scratch.write(Array(kernel[..<count]), to: "truncated-\(count)")
                try expect([path, part], ["run", "--kernel", path])
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
            try expect(
                [scratch.path, "Is a directory"], ["run", "--kernel", kernel, "--initramfs", scratch.path])
            for size in [100 << 20, 300 << 20] {
                let large = scratch.write([], to: "large")
                truncate(large, size)
                try expect(
                    [large, "more memory"], ["run", "--kernel", kernel, "--memory", "128M", "--initramfs", large])
            }
        }

        @Test(
            .needsGuests,
            arguments: [
                ("4K", ["4 KiB of memory", "at least 4 MiB", "--memory"]),
                ("1M", ["1 MiB of memory", "at least 4 MiB", "--memory"]),
                ("8M", ["vmlinuz", "8 MiB", "more memory (--memory)"]),
                ("32M", ["vmlinuz", "32 MiB", "more memory (--memory)"]),
                ("33T", ["33T of memory", "32T", "--memory"]), ("1000000T", ["1000000T of memory", "32T", "--memory"])
            ])
        func memory(size: String, parts: [String]) throws {
            let kernel = try #require(MartletCommand.guest(.cloud)).kernel.string
            try expect(parts, ["run", "--kernel", kernel, "--memory", size])
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

        /// As a user whom the permissions hold back.
        @Test(.enabled(if: OrdinaryUser.isAvailable, OrdinaryUser.missing))
        func unreadableFiles() throws {
            let (scratch, home) = (ScratchDirectory(), ScratchDirectory())
            chmod(scratch.path, 0o755)
            let kernel = scratch.write(BareGuest.elf(BareGuest.powerOff), to: "kernel")
            let secret = scratch.write([1], to: "secret")
            chmod(secret, 0)
            for (arguments, option) in [
                (["--kernel", secret], "--kernel"), (["--kernel", kernel, "--initramfs", secret], "--initramfs")
            ] {
                let child = try OrdinaryUser.start(["run", "--memory", "16M"] + arguments, home: home)
                #expect(child.wait() == .exited(2), Boot.account(child))
                #expect(child.errors.occurrences(of: "\n") == 1, Boot.account(child))
                for part in [secret, "Permission denied", option] {
                    #expect(child.errorText.contains(part), "\(part): \(child.errorText)")
                }
            }
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

extension RawSpan {
    /// Where the kernel in a bzImage ends, by its header.
    fileprivate var kernelByteCount: Int {
        get throws { try SetupHeader(parsing: self).protectedMode(in: self).upperBound }
    }
}
