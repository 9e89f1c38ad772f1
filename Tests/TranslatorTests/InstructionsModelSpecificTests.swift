import Testing
import Translator
import X86

@Suite struct InstructionsModelSpecificTests {
    private func writes(_ ranges: inout MemoryTypeRanges, _ register: UInt32, _ value: UInt64) -> Bool {
        ranges.write(register, value, physicalAddressWidth: 40)
    }

    @Test func pageAttributes() {
        #expect(PageAttributes.isValid(0x0007_0406_0007_0406))
        #expect(PageAttributes.isValid(0x0007_0105_0007_0406))
        for type: UInt64 in 0..<256 {
            let isType = [0, 1, 4, 5, 6, 7].contains(type)
            for shift in stride(from: UInt64(0), to: 64, by: 8) {
                #expect(PageAttributes.isValid(type << shift) == isType)
            }
        }
    }

    @Test func memoryTypesAreStored() {
        var ranges = MemoryTypeRanges()
        var registers: [UInt32] = Array(0x200...0x20F)
        registers += [0x250, 0x258, 0x259] + Array(0x268...0x26F) + [0x2FF]
        for (number, register) in registers.enumerated() {
            let value: UInt64 =
                switch register {
                case 0x2FF: 0xC06
                case 0x200...0x20F: UInt64(number) << 12 | (register & 1 != 0 ? 0x800 : 6)
                default: 0x0606_0606_0606_0600 | UInt64(register & 1)
                }
            #expect(writes(&ranges, register, value))
            #expect(ranges.read(register) == value)
        }
        for (number, register) in registers.enumerated() where register < 0x210 {
            #expect(ranges.read(register)! >> 12 == UInt64(number))
        }
        for register: UInt32 in [0x1FF, 0x210, 0x251, 0x25A, 0x267, 0x270, 0x277] {
            #expect(ranges.read(register) == nil)
            #expect(!writes(&ranges, register, 0))
        }
    }

    @Test func memoryTypesAreChecked() {
        var ranges = MemoryTypeRanges()
        #expect(!writes(&ranges, 0x2FF, 2))
        #expect(!writes(&ranges, 0x2FF, 0x1000))
        #expect(!writes(&ranges, 0x250, 0x0300))
        #expect(!writes(&ranges, 0x200, 1 << 40))
        #expect(writes(&ranges, 0x200, 1 << 39))
        #expect(!writes(&ranges, 0x200, 0x100))
        #expect(!writes(&ranges, 0x200, 7))
        #expect(!writes(&ranges, 0x201, 0x400))
        #expect(ranges.read(0x201) == 0)
    }
}
