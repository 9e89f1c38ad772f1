import CHost
import KVMInterface
import Testing

/// A run area of three pages that goes away with the test.
private final class Area {
    let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 3 * 4096, alignment: 4096)
    var area: RunArea { RunArea(bytes) }

    init() { bytes.initializeMemory(as: UInt8.self, repeating: 0) }
    deinit { bytes.deallocate() }
}

@Suite struct RunAreaTests {
    @Test func portOutput() throws {
        let memory = Area()
        let run = memory.area.run
        run.pointee.exit_reason = UInt32(KVM_EXIT_IO)
        run.pointee.io.direction = UInt8(KVM_EXIT_IO_OUT)
        run.pointee.io.size = 2
        run.pointee.io.port = 0x3F8
        run.pointee.io.count = 3
        run.pointee.io.data_offset = 4096
        memory.bytes.storeBytes(of: 0x2211, toByteOffset: 4096, as: UInt16.self)
        guard case .io(let access) = memory.area.exit else {
            Issue.record("\(memory.area.exit)")
            return
        }
        #expect(access.port == 0x3F8 && access.isWrite && access.byteCount == 2 && access.count == 3)
        #expect(access.value == 0x2211)
        #expect(access.data.count == 6)
    }

    @Test func answerToPortInputGoesWhereTheExitSays() {
        let memory = Area()
        let run = memory.area.run
        run.pointee.exit_reason = UInt32(KVM_EXIT_IO)
        run.pointee.io.size = 4
        run.pointee.io.count = 1
        run.pointee.io.data_offset = 4096
        guard case .io(let access) = memory.area.exit else {
            Issue.record("\(memory.area.exit)")
            return
        }
        #expect(!access.isWrite)
        access.value = 0xA1B2_C3D4
        #expect(memory.bytes.load(fromByteOffset: 4096, as: UInt32.self) == 0xA1B2_C3D4)
    }

    @Test func mmioDataIsThatOfTheStructure() {
        let memory = Area()
        let run = memory.area.run
        run.pointee.exit_reason = UInt32(KVM_EXIT_MMIO)
        run.pointee.mmio.phys_addr = 0xFE00_0000
        run.pointee.mmio.len = 8
        run.pointee.mmio.is_write = 1
        run.pointee.mmio.data = (1, 2, 3, 4, 5, 6, 7, 8)
        guard case .mmio(let access) = memory.area.exit else {
            Issue.record("\(memory.area.exit)")
            return
        }
        #expect(access.address == 0xFE00_0000 && access.isWrite && access.byteCount == 8)
        #expect(access.value == 0x0807_0605_0403_0201)
        access.value = 0x1122_3344_5566_7788
        #expect(run.pointee.mmio.data.0 == 0x88 && run.pointee.mmio.data.7 == 0x11)
    }

    @Test func immediateExitIsTheSecondByte() {
        let memory = Area()
        memory.area.immediateExit = true
        #expect(memory.bytes[1] == 1)
        #expect(memory.area.run.pointee.immediate_exit == 1)
        memory.area.immediateExit = false
        #expect(memory.bytes[1] == 0)
    }

    @Test func otherExits() {
        let memory = Area()
        let run = memory.area.run
        run.pointee.exit_reason = UInt32(KVM_EXIT_INTERNAL_ERROR)
        run.pointee.internal.suberror = 1
        run.pointee.internal.ndata = 2
        run.pointee.internal.data.0 = 7
        run.pointee.internal.data.1 = 8
        guard case .internalError(let suberror, let data) = memory.area.exit else {
            Issue.record("\(memory.area.exit)")
            return
        }
        #expect(suberror == 1 && data == [7, 8])
        run.pointee.exit_reason = UInt32(KVM_EXIT_FAIL_ENTRY)
        run.pointee.fail_entry.hardware_entry_failure_reason = 5
        run.pointee.fail_entry.cpu = 3
        guard case .failEntry(reason: 5, cpu: 3) = memory.area.exit else {
            Issue.record("\(memory.area.exit)")
            return
        }
        run.pointee.exit_reason = 4711
        guard case .unknown(4711) = memory.area.exit else {
            Issue.record("\(memory.area.exit)")
            return
        }
    }
}
