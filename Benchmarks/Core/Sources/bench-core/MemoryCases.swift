import Glibc
import Host
import KVMInterface
import UserspaceKVM

/// What the core's objects cost in memory: growth of the process's resident pages.
enum MemoryCases {
    static func report() {
        print("\n| memory, KiB each | |\n|---|---|")
        row("a slot (32,000 made)", slots())
        row("a vCPU that never ran (1,000 made)", vcpus())
        row("a machine without vCPUs (200 made)", machines())
    }

    private static func row(_ name: String, _ bytes: Double) {
        print("| \(name) | \(Measure.text(bytes / 1024)) |")
    }

    /// Resident bytes of the process.
    private static var resident: Int {
        guard let file = fopen("/proc/self/smaps_rollup", "r") else { return 0 }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 256)
        while fgets(&line, Int32(line.count), file) != nil {
            let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            guard text.hasPrefix("Rss:") else { continue }
            return (text.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0) * 1024
        }
        return 0
    }

    /// Growth for each of `count`, while `keep` holds them.
    private static func growth(_ count: Int, _ make: (Int) throws -> AnyObject?) -> Double {
        var kept: [AnyObject] = []
        kept.reserveCapacity(count)
        do {
            // What is made once for all.
            for index in 0..<count / 10 { if let object = try make(index) { kept.append(object) } }
            let before = resident
            for index in count / 10..<count { if let object = try make(index) { kept.append(object) } }
            let after = resident
            return withExtendedLifetime(kept) { Double(after - before) / Double(count - count / 10) }
        } catch { fatalError("the objects cannot be made: \(error)") }
    }

    private static func slots() -> Double {
        let machine = BenchMachine(guests: 0, .compute)
        return growth(32000) { index in
            try machine.machine.setUserMemoryRegion(
                UserMemoryRegion(
                    slot: UInt32(index + 2), flags: 0, guest_phys_addr: 1 << 32 + UInt64(index) << 13,
                    memory_size: 4096, userspace_addr: UInt64(UInt(bitPattern: machine.memory))))
            return nil
        }
    }

    private static func vcpus() -> Double {
        do {
            let machine = try KVMSystem(backend: UserspaceKVM()).createVM()
            try machine.createIRQChip()
            return growth(1000) { try machine.createVCPU(id: UInt32($0)) }
        } catch { fatalError("no machine: \(error)") }
    }

    private static func machines() -> Double {
        do {
            let system = try KVMSystem(backend: UserspaceKVM())
            return growth(200) { _ in try system.createVM() }
        } catch { fatalError("no machine: \(error)") }
    }
}
