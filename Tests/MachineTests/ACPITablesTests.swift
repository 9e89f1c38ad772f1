import Addressing
import Machine
import Testing

@Suite struct ACPITablesTests {
    private static let end = GuestPhysicalAddress(0x800_0000)

    /// Tables in place, read by physical address as a guest does.
    private struct Memory {
        var placement: ACPITables.Placement

        func bytes(_ address: UInt64, _ count: Int) throws -> [UInt8] {
            for (range, bytes) in [placement.tables, placement.storage]
            where range.contains(GuestPhysicalAddress(address)) {
                let start = Int(address - range.lowerBound.value)
                try #require(start + count <= bytes.count)
                return Array(bytes[start..<start + count])
            }
            throw Outside()
        }

        /// The whole table at `address`, whose checksum is right.
        func table(_ address: UInt64) throws -> [UInt8] {
            let count: UInt32 = try bytes(address + 4, 4).integer(0)
            let table = try bytes(address, Int(count))
            #expect(table.reduce(0, &+) == 0, "checksum")
            return table
        }

        func root() throws -> [String: [UInt8]] {
            let pointer = placement.rootPointer.bytes
            let root = try table(pointer.integer(24))
            #expect(root.prefix(4).elementsEqual("XSDT".utf8))
            var tables: [String: [UInt8]] = [:]
            for offset in stride(from: 36, to: root.count, by: 8) {
                let table = try table(root.integer(offset))
                tables[String(decoding: table.prefix(4), as: UTF8.self)] = table
            }
            return tables
        }

        struct Outside: Error {}
    }

    private static func place(
        _ processors: [ACPITables.Processor], devices: [ACPIDevice] = [.serialPort, .realTimeClock]
    )
        -> Memory
    {
        Memory(placement: ACPITables(processors: processors, devices: devices).place(endingAt: end))
    }

    @Test func rootPointerHasBothChecksums() {
        let (address, bytes) = Self.place([.init(id: 0)]).placement.rootPointer
        #expect(address.value == 0xE_0000)
        #expect(bytes.count == 36)
        #expect(bytes.prefix(8).elementsEqual("RSD PTR ".utf8))
        #expect(bytes[15] == 2)
        #expect(bytes.prefix(20).reduce(0, &+) == 0)
        #expect(bytes.reduce(0, &+) == 0)
    }

    @Test func fixedDescriptionNamesTheBoardsPorts() throws {
        let memory = Self.place([.init(id: 0)])
        let table = try #require(try memory.root()["FACP"])
        #expect(table.count == 276 && table[8] == 6)
        #expect(table.integer(46, as: UInt16.self) == 9)
        #expect(table.integer(56, as: UInt32.self) == 0x600 && table[88] == 4)
        #expect(table.integer(64, as: UInt32.self) == 0x604 && table[89] == 2)
        #expect(table.integer(76, as: UInt32.self) == 0x608 && table[91] == 4)
        #expect(table.integer(48, as: UInt32.self) == 0, "no SMI command port")
        for (offset, port, bits) in [(116, 0xCF9, 8), (148, 0x600, 32), (172, 0x604, 16), (208, 0x608, 32)] {
            #expect(table[offset] == 1 && Int(table[offset + 1]) == bits)
            #expect(table.integer(offset + 4, as: UInt64.self) == UInt64(port))
        }
        let flags: UInt32 = table.integer(112)
        #expect(flags & 1 << 10 != 0, "there is a reset register")
        #expect(flags & 1 << 20 == 0, "not hardware-reduced")
        #expect(table[128] == BoardLayout.resetValue)

        let dsdt: UInt64 = table.integer(140)
        #expect(UInt64(table.integer(40, as: UInt32.self)) == dsdt)
        #expect(try memory.table(dsdt).prefix(4).elementsEqual("DSDT".utf8))
        let control: UInt32 = table.integer(36)
        #expect(control % 64 == 0)
        let structure = try memory.bytes(UInt64(control), 64)
        #expect(structure.prefix(4).elementsEqual("FACS".utf8) && structure.integer(4, as: UInt32.self) == 64)
    }

    /// The interrupt controller structures of the MADT: type and contents with type and length.
    private static func structures(_ table: [UInt8]) throws -> [[UInt8]] {
        var structures: [[UInt8]] = []
        var offset = 44
        while offset < table.count {
            let count = Int(table[offset + 1])
            try #require(count >= 2 && offset + count <= table.count)
            structures.append(Array(table[offset..<offset + count]))
            offset += count
        }
        return structures
    }

    @Test func everyProcessorHasAnEntry() throws {
        let processors = (0..<300).map { ACPITables.Processor(id: UInt32($0), isEnabled: $0 < 2) }
        let table = try #require(try Self.place(processors).root()["APIC"])
        #expect(table.integer(36, as: UInt32.self) == 0xFEE0_0000)
        let structures = try Self.structures(table)
        let local = structures.filter { $0[0] == 0 }
        #expect(local.map { $0[3] } == (0..<255).map { UInt8($0) })
        #expect(local.map { $0[2] } == (0..<255).map { UInt8($0) })
        #expect(local.map { $0.integer(4, as: UInt32.self) } == [1, 1] + [UInt32](repeating: 2, count: 253))
        let extended = structures.filter { $0[0] == 9 }
        #expect(extended.allSatisfy { $0.count == 16 })
        #expect(extended.map { $0.integer(4, as: UInt32.self) } == Array(255..<300))
        #expect(extended.map { $0.integer(12, as: UInt32.self) } == Array(255..<300))
        #expect(structures.contains([10, 12, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]))
    }

    @Test func linesReachTheIOAPIC() throws {
        let table = try #require(try Self.place([.init(id: 0)]).root()["APIC"])
        let structures = try Self.structures(table)
        #expect(structures.contains([1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0]))
        #expect(structures.contains([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]), "timer")
        #expect(structures.contains([2, 10, 0, 9, 9, 0, 0, 0, 13, 0]), "SCI: level, active high")
        #expect(structures.contains([4, 6, 0xFF, 0, 0, 1]), "NMI")
        #expect(!structures.contains { $0[0] == 10 }, "no x2APIC NMI without x2APIC IDs")
    }

    @Test func differentiatedDescriptionHasItsObjects() throws {
        let memory = Self.place([.init(id: 0)])
        let table = try memory.table(try #require(try memory.root()["FACP"]).integer(140))
        func contains(_ bytes: [UInt8]) -> Bool {
            (36...table.count - bytes.count).contains { Array(table[$0..<$0 + bytes.count]) == bytes }
        }
        #expect(contains([0x08, 0x5C] + Array("_S5_".utf8) + [0x12, 0x07, 0x04, 0x0A, 5, 0, 0, 0]))
        #expect(contains(Array("COM1".utf8)))
        #expect(contains([0x0C, 0x41, 0xD0, 0x05, 0x01]), "PNP0501")
        #expect(contains([0x47, 1, 0xF8, 0x03, 0xF8, 0x03, 1, 8, 0x22, 0x10, 0, 0x79, 0]), "ports and line")
        #expect(contains([0x0C, 0x41, 0xD0, 0x0B, 0x00]), "PNP0B00")
    }

    @Test func devicesOfTheMachineAreDescribed() throws {
        let devices = (0..<40).map { index in
            ACPIDevice(
                name: "V\(index)", hardwareID: "LNRO0005", uniqueID: UInt32(index),
                resources: [
                    .memory(start: 0xD000_0000 + UInt32(index) * 0x1000, byteCount: 0x200),
                    .interrupt(gsi: 20, isLevel: true)
                ])
        }
        let memory = Self.place([.init(id: 0)], devices: devices)
        let table = try memory.table(try #require(try memory.root()["FACP"]).integer(140))
        let last: [UInt8] = [0x86, 9, 0, 1, 0, 0x70, 0x02, 0xD0, 0, 2, 0, 0, 0x89, 6, 0, 1, 1, 20, 0, 0, 0]
        #expect((36...table.count - last.count).contains { Array(table[$0..<$0 + last.count]) == last })
    }

    @Test func tablesFillWhatTheySay() {
        for count in [1, 64, 4096] {
            let tables = ACPITables(processors: (0..<count).map { .init(id: UInt32($0)) })
            let placement = tables.place(endingAt: Self.end)
            #expect(placement.storage.range.upperBound == Self.end)
            #expect(placement.tables.range.upperBound == placement.storage.range.lowerBound)
            #expect(placement.tables.range.lowerBound.value == Self.end.value - tables.byteCount)
            #expect(UInt64(placement.tables.bytes.count) <= tables.byteCount - pageSize)
            #expect(tables.byteCount % pageSize == 0)
        }
    }
}
