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
            // What the kernel and its page structures keep for themselves is at most three eighths (of the smallest guest).
            let given = memory == "128M" ? 128 << 10 : Int(memory.dropLast())! << 20
            let total = try #require(
                child.outputText.split(whereSeparator: \.isNewline).first { $0.hasPrefix("MemTotal:") }?
                    .split(separator: " ").dropFirst().first.flatMap { Int($0) })
            #expect(total < given && total > given / 8 * 5, "\(total) KiB of \(given)")
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
