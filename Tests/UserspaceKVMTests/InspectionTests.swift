import CHost
import Glibc
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// What the core tells about itself.
@Suite struct InspectionTests {
    /// A statistics file as a client reads it.
    private struct StatisticsReader {
        let backend: any KVMBackend
        let descriptor: KVMDescriptor
        var identifier = ""
        /// Name, flags, place of the value.
        var entries: [(name: String, flags: UInt32, offset: Int)] = []

        init(_ backend: any KVMBackend, _ owner: KVMDescriptor) throws {
            self.backend = backend
            descriptor = KVMDescriptor(
                rawValue: try backend.ioctl(owner, KVMRequest.getStatisticsDescriptor.rawValue, 0))
            let header = try read(at: 0, 24).withUnsafeBytes { $0.load(as: kvm_stats_header.self) }
            let nameSize = Int(header.name_size)
            identifier = Self.text(try read(at: Int(header.id_offset), nameSize))
            for index in 0..<Int(header.num_desc) {
                let start = Int(header.desc_offset) + index * (16 + nameSize)
                let bytes = try read(at: start, 16 + nameSize)
                let (flags, size, offset) = bytes.withUnsafeBytes {
                    (
                        $0.load(as: UInt32.self), $0.load(fromByteOffset: 6, as: UInt16.self),
                        $0.load(fromByteOffset: 8, as: UInt32.self)
                    )
                }
                #expect(size == 1)
                entries.append((Self.text(Array(bytes[16...])), flags, Int(header.data_offset) + Int(offset)))
            }
        }

        func value(_ name: String) throws -> UInt64 {
            let entry = try #require(entries.first { $0.name == name })
            return try read(at: entry.offset, 8).withUnsafeBytes { $0.load(as: UInt64.self) }
        }

        func read(at offset: Int, _ byteCount: Int) throws -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: byteCount)
            let count = try bytes.withUnsafeMutableBytes {
                try backend.readStatistics(descriptor, at: offset, into: $0)
            }
            try #require(count == byteCount)
            return bytes
        }

        private static func text(_ bytes: [UInt8]) -> String {
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
    }

    @Test func statisticsFollowWhatHappens() throws {
        // out 0x10,al ; mov al,[es:0] beyond memory ; hlt
        let small = try SmallMachine(code: [
            0xE6, 0x10, 0xB8, 0xFF, 0xFF, 0x8E, 0xC0, 0x26, 0xA0, 0x10, 0x00, 0xF4
        ])
        #expect(try small.machine.checkExtension(.binaryStatistics) == 1)
        let vcpu = try StatisticsReader(small.backend, small.vcpu.descriptor)
        let machine = try StatisticsReader(small.backend, small.machine.descriptor)
        #expect(vcpu.identifier == "kvm-\(getpid())/vcpu-0")
        #expect(machine.identifier == "kvm-\(getpid())")
        #expect(Set(vcpu.entries.map(\.name)).count == vcpu.entries.count)
        #expect(try vcpu.value("exits") == 0)
        while true {
            if case .hlt = try small.vcpu.run() { break }
        }
        #expect(try vcpu.value("exits") == 3)
        #expect(try vcpu.value("io_exits") == 1)
        #expect(try vcpu.value("mmio_exits") == 1)
        #expect(try vcpu.value("halt_exits") == 1)
        #expect(try vcpu.value("guest_mode") == 0)
        #expect(try machine.value("memslots") == 1)
        #expect(try machine.value("memslot_pages") == UInt64(SmallMachine.byteCount / 4096))
        #expect(try machine.value("translated_blocks") > 0)
        let flushes = try machine.value("remote_tlb_flush_requests")
        try small.machine.setUserMemoryRegion(
            UserMemoryRegion(slot: 0, flags: 0, guest_phys_addr: 0, memory_size: 0, userspace_addr: 0))
        #expect(try machine.value("remote_tlb_flush_requests") == flushes + 1)
        #expect(try machine.value("memslots") == 0)
    }

    @Test func statisticsFilesHaveAnEndAndNoRequests() throws {
        let small = try SmallMachine()
        let reader = try StatisticsReader(small.backend, small.vcpu.descriptor)
        var byte: UInt8 = 0
        let count = try withUnsafeMutableBytes(of: &byte) {
            try small.backend.readStatistics(reader.descriptor, at: 1 << 20, into: $0)
        }
        #expect(count == 0)
        #expect(throws: Errno.inappropriateIOCTLForDevice) { try small.backend.ioctl(reader.descriptor, 0xAE80, 0) }
        #expect(throws: Errno.invalidArgument) {
            try withUnsafeMutableBytes(of: &byte) {
                try small.backend.readStatistics(small.vcpu.descriptor, at: 0, into: $0)
            }
        }
        small.backend.close(reader.descriptor)
        #expect(throws: Errno.badFileDescriptor) { try reader.value("exits") }
    }

    @Test func machinesShowTheirParts() throws {
        let small = try SmallMachine(code: [0xEB, 0xFE], hasIRQChip: true)
        _ = try small.machine.createVCPU(id: 9)
        try small.machine.parkVCPU(id: 9)
        let vcpu = small.vcpu
        try withThreads(
            1, { _ in _ = try? vcpu.run() },
            meanwhile: {
                defer { vcpu.requestExit() }
                var inspection: MachineInspection
                repeat {
                    inspection = try #require(small.machine.inspect())
                } while inspection.vcpus[0].state != .guest
                let spaces = inspection.addressSpaces
                #expect(spaces.count == 2)
                let slot = MachineInspection.Slot(
                    id: 0, guestAddress: 0, byteCount: UInt64(SmallMachine.byteCount),
                    hostAddress: UInt64(UInt(bitPattern: small.memory.baseAddress)), isReadOnly: false, isLogged: false,
                    isInvalid: false)
                #expect(spaces[0].sets == [[slot], [slot]])
                #expect(spaces[1].sets == [[], []])
                #expect(inspection.vcpus.map(\.id) == [0, 9])
                #expect(inspection.vcpus[1].state == .parked)
                #expect(inspection.shadowPages.isEmpty)
                #expect(inspection.gracePeriods.map(\.name).contains("memory slots"))
                let shadow = try #require(inspection.gracePeriods.first { $0.name == "shadow pages" })
                #expect(shadow.activeReaders == 1)
                #expect(shadow.oldestReaderAge == 0)
                let active = spaces[0].activeSet
                try small.machine.setUserMemoryRegion(
                    UserMemoryRegion(
                        slot: 3, flags: 0, guest_phys_addr: 1 << 32, memory_size: 4096,
                        userspace_addr: slot.hostAddress))
                let after = try #require(small.machine.inspect())
                #expect(after.addressSpaces[0].activeSet == 1 - active)
                #expect(after.addressSpaces[0].generation != spaces[0].generation)
            })
        #expect(small.machine.inspect()?.vcpus[0].state == .host)
    }

    /// A device that is accessed again and again is in the shadow pages, below the root of its address space.
    @Test func devicesAreInTheShadowPages() throws {
        // again: mov al,[1000_0000h] ; jmp again
        let small = try SmallMachine(code: [0x8A, 0x04, 0x25, 0x00, 0x00, 0x00, 0x10, 0xEB, 0xF7])
        try small.enter64BitMode()
        for _ in 0..<20 {
            guard case .mmio(let access) = try small.vcpu.run(), access.address == 0x1000_0000 else {
                Issue.record("no MMIO exit: \(small.vcpu.runArea.exit)")
                return
            }
        }
        let pages = try #require(small.machine.inspect()).shadowPages
        let device = try #require(pages.first { page in page.entries.contains { $0.kind == .device } })
        #expect(device.entries.map(\.frame) == [0x10000])
        let root = try #require(pages.first { $0.isRoot })
        #expect(root.level == 4 && root.frame == 0x10)
        // From the root to the device.
        var page = root
        while page != device {
            let entry = try #require(page.entries.first)
            #expect(entry.kind == .page)
            page = try #require(pages.first { $0.role == entry.role && $0.frame == entry.frame })
        }
    }
}
