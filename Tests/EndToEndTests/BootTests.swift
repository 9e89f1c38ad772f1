import DefaultGuest
import TestSupport
import Testing

extension EndToEnd {
    /// Debian's kernels from the first instruction to power-off.
    @Suite(.needsGuests) struct Boots {
        @Test(arguments: GuestFlavour.allCases, [1, 2])
        func runsAWorkloadAndPowersOff(flavour: GuestFlavour, cpus: Int) throws {
            let child = try Boot.start(Boot.arguments(flavour, cpus: cpus, running: Workload.command))
            #expect(child.wait() == .exited(0), Boot.account(child))
            Workload.check(child, cpus: cpus)
        }

        @Test(arguments: [(8, "128M"), (1, "8G"), (2, "5G"), (8, "4G")])
        func otherSizes(cpus: Int, memory: String) throws {
            let child = try Boot.start(Boot.arguments(cpus: cpus, memory: memory, running: Workload.command))
            #expect(child.wait() == .exited(0), Boot.account(child))
            Workload.check(child, cpus: cpus)
            // All of it is the kernel's, but 384 KiB below 1 MiB, two pages of tables, and the part of a page (twice).
            let given = memory == "128M" ? 128 << 10 : Int(memory.dropLast())! << 20
            let pages = try #require(child.output.number(before: "K available", after: "K/"), Boot.account(child))
            #expect(pages == given - 384 - 2 * 4 - 8)
        }

        @Test(arguments: [1, 2]) func memoryByShadowPages(cpus: Int) throws {
            let child = try Boot.start(Boot.arguments(cpus: cpus, running: Workload.command) + ["--mmu", "shadow"])
            #expect(child.wait() == .exited(0), Boot.account(child))
            Workload.check(child, cpus: cpus)
        }

        /// The option shapes of cloud-hypervisor: processors to come, and the size by its name.
        @Test func processorsToCome() throws {
            let guest = try #require(MartletCommand.guest(.cloud))
            let command = "nproc; cat /sys/devices/system/cpu/possible"
            let child = try Boot.start([
                "run", "--kernel", guest.kernel.string, "--initramfs", guest.initramfs.string, "--cpus", "boot=2,max=8",
                "--memory", "size=512M", "--append", "martlet.run=\"\(command)\""
            ])
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.output.occurrences(of: "\r\n2\r\n0-7\r\n") == 1, Boot.account(child))
            #expect(child.output.number(before: "K available", after: "K/") == 512 << 10 - 384 - 2 * 4 - 8)
        }

        @Test func standardKernelWithEightProcessors() throws {
            let child = try Boot.start(Boot.arguments(.standard, cpus: 8, memory: "512M", running: Workload.command))
            #expect(child.wait() == .exited(0), Boot.account(child))
            Workload.check(child, cpus: 8)
        }

        /// The guest's own code unpacks the kernel, from real compressed data.
        @Test func theGuestUnpacksItself() throws {
            let child = try Boot.start(Boot.arguments(running: "uname -r") + ["--unpack", "guest"])
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.outputText.contains("martlet.status=0"), Boot.account(child))
        }

        /// No privilege, and the guests of root are nobody's business.
        @Test(.enabled(if: OrdinaryUser.isAvailable, OrdinaryUser.missing))
        func asAnOrdinaryUser() throws {
            let guest = try #require(MartletCommand.guest(.cloud))
            let home = ScratchDirectory()
            let arguments = try [(guest.kernel.string, "vmlinuz"), (guest.initramfs.string, "initramfs")].map {
                path, name in
                home.write(try #require(ScratchDirectory.contents(of: path)), to: name)
            }
            let child = try OrdinaryUser.start(
                ["run", "--kernel", arguments[0], "--initramfs", arguments[1], "--append", "martlet.batch"], home: home)
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.output.occurrences(of: "\nLinux martlet ") == 1, Boot.account(child))
            #expect(child.errors.isEmpty, "\(child.errorText)")
        }

        @Test func twoBootsSideBySide() throws {
            let children = try (0..<2).map { _ in
                try Boot.start(Boot.arguments(cpus: 2, running: Workload.command))
            }
            for child in children {
                #expect(child.wait() == .exited(0), Boot.account(child))
                Workload.check(child, cpus: 2)
            }
        }

        /// Without a terminal the default guest needs no options.
        @Test func defaultGuest() throws {
            let child = try Boot.start(["run", "--append", "martlet.batch"])
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.output.occurrences(of: "Linux martlet ") == 1, Boot.account(child))
        }
    }
}

/// What guests do between boot and power-off.
enum Workload {
    /// Processes, pipes, files, sorting, compression and sleep.
    static let command = """
        for i in 1 2 3 4; do (seq $i 7 30000 | sort -r | md5sum > /tmp/$i) & done; wait; cat /tmp/? | sha256sum; \
        dd if=/bin/busybox bs=64k 2>/dev/null | gzip | gunzip | cmp - /bin/busybox && echo same; \
        echo cpus=`nproc`; head -1 /proc/meminfo; sleep 0.1
        """

    /// `sha256sum` of the sorted numbers' sums, as computed on any Debian machine.
    private static let digest = "1f913a3846dc342ea3266e17fbea27fa80cc298982d6714b48d2b2f076b614bb  -"

    /// The workload of `child`, which has ended, came to the right results.
    static func check(_ child: ChildProcess, cpus: Int, sourceLocation: SourceLocation = #_sourceLocation) {
        let lines = child.outputText.split(whereSeparator: \.isNewline)
        for expected in [digest, "same", "cpus=\(cpus)", "martlet.status=0"] {
            #expect(
                lines.contains { $0 == expected }, "'\(expected)' is missing. \(Boot.account(child))",
                sourceLocation: sourceLocation)
        }
        #expect(child.errors.isEmpty, "\(child.errorText)", sourceLocation: sourceLocation)
        #expect(!child.hasLeftProcesses, sourceLocation: sourceLocation)
    }
}

extension [UInt8] {
    /// The decimal number between `prefix` and `suffix`, as in "1 of 20 left".
    fileprivate func number(before suffix: String, after prefix: String) -> Int? {
        guard let end = end(of: suffix) else { return nil }
        let digits = self[..<(end - suffix.utf8.count)].reversed().prefix { (0x30...0x39).contains($0) }.reversed()
        guard self[..<(end - suffix.utf8.count - digits.count)].ends(with: prefix.utf8) else { return nil }
        return Int(String(decoding: digits, as: UTF8.self))
    }
}

extension Collection where Element: Equatable {
    fileprivate func ends(with other: some Collection<Element>) -> Bool { suffix(other.count).elementsEqual(other) }
}
