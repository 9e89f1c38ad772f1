import X86

/// The state of a processor as system management mode saves it, in either layout of the save area.
///
/// Offsets are those from SMBASE. Each field is named once, for both directions.
/// > Source: APM volume 2, section 10.2.3; for the layout of 32-bit processors Linux, `enter_smm_save_state_32` (behaviour).
struct SystemManagementSaveArea {
    /// Where the area lies, from SMBASE on.
    static let offset: UInt64 = 0xFE00
    static let byteCount = 512

    enum Layout {
        /// Of a processor without long mode.
        case bits32
        /// AMD's, of a processor with long mode.
        case bits64
    }

    var registers = InlineArray<16, UInt64>(repeating: 0)
    var rip: UInt64 = 0
    var rflags: UInt64 = 0
    var dr6: UInt64 = 0
    var dr7: UInt64 = 0
    var cr0: UInt64 = 0
    var cr3: UInt64 = 0
    var cr4: UInt64 = 0
    var efer: UInt64 = 0
    var segments = InlineArray<6, Segment>(repeating: Segment.realMode(selector: 0, isCode: false))
    var ldtr = Segment.realMode(selector: 0, isCode: false)
    var tr = Segment.realMode(selector: 0, isCode: false)
    var gdtr = DescriptorTableRegister(base: 0, limit: 0)
    var idtr = DescriptorTableRegister(base: 0, limit: 0)
    /// SMBASE.
    var base: UInt64 = 0
    /// The interrupt came while the processor was halted: RSM leads back there.
    var isHalted = false

    /// The bytes of the area; what has no field is 0.
    func encoded(_ layout: Layout) -> [UInt8] {
        var copy = self
        var area = Area(bytes: [UInt8](repeating: 0, count: Self.byteCount), isSaving: true)
        copy.transfer(&area, layout)
        return area.bytes
    }

    /// Takes over what the area holds; the rest stays.
    /// - Parameter bytes: ``byteCount`` of them.
    mutating func decode(_ bytes: [UInt8], _ layout: Layout) {
        var area = Area(bytes: bytes, isSaving: false)
        transfer(&area, layout)
    }

    // MARK: Layouts

    private mutating func transfer(_ area: inout Area, _ layout: Layout) {
        switch layout {
        case .bits32: transfer32(&area)
        case .bits64: transfer64(&area)
        }
    }

    private mutating func transfer64(_ area: inout Area) {
        for index in segments.indices { area.segment64(&segments[index], 0xFE00 + index * 16) }
        area.field(&gdtr.limit, 0xFE64, as: UInt32.self)
        area.field(&gdtr.base, 0xFE68, as: UInt64.self)
        area.segment64(&ldtr, 0xFE70)
        area.field(&idtr.limit, 0xFE84, as: UInt32.self)
        area.field(&idtr.base, 0xFE88, as: UInt64.self)
        area.segment64(&tr, 0xFE90)
        area.flag(&isHalted, 0xFEC9)
        area.field(&efer, 0xFED0, as: UInt64.self)
        area.revision(0x2_0064)
        area.field(&base, 0xFF00, as: UInt32.self)
        area.field(&cr4, 0xFF48, as: UInt64.self)
        area.field(&cr3, 0xFF50, as: UInt64.self)
        area.field(&cr0, 0xFF58, as: UInt64.self)
        area.field(&dr7, 0xFF60, as: UInt64.self)
        area.field(&dr6, 0xFF68, as: UInt64.self)
        area.field(&rflags, 0xFF70, as: UInt32.self)
        area.field(&rip, 0xFF78, as: UInt64.self)
        for index in registers.indices { area.field(&registers[index], 0xFFF8 - index * 8, as: UInt64.self) }
    }

    private mutating func transfer32(_ area: inout Area) {
        area.field(&base, 0xFEF8, as: UInt32.self)
        area.revision(0x2_0000)
        area.flag(&isHalted, 0xFF02)
        area.field(&cr4, 0xFF14, as: UInt32.self)
        for index in segments.indices {
            area.field(&segments[index].selector, 0xFFA8 + index * 4, as: UInt32.self)
            area.hiddenPart32(&segments[index], index < 3 ? 0xFF84 + index * 12 : 0xFF2C + (index - 3) * 12)
        }
        area.field(&idtr.limit, 0xFF54, as: UInt32.self)
        area.field(&idtr.base, 0xFF58, as: UInt32.self)
        area.hiddenPart32(&tr, 0xFF5C)
        area.field(&gdtr.limit, 0xFF70, as: UInt32.self)
        area.field(&gdtr.base, 0xFF74, as: UInt32.self)
        area.hiddenPart32(&ldtr, 0xFF78)
        area.field(&ldtr.selector, 0xFFC0, as: UInt32.self)
        area.field(&tr.selector, 0xFFC4, as: UInt32.self)
        area.field(&dr7, 0xFFC8, as: UInt32.self)
        area.field(&dr6, 0xFFCC, as: UInt32.self)
        for index in 0..<8 { area.field(&registers[index], 0xFFD0 + index * 4, as: UInt32.self) }
        area.field(&rip, 0xFFF0, as: UInt32.self)
        area.field(&rflags, 0xFFF4, as: UInt32.self)
        area.field(&cr3, 0xFFF8, as: UInt32.self)
        area.field(&cr0, 0xFFFC, as: UInt32.self)
    }

    /// The bytes, and which way they go.
    private struct Area {
        var bytes: [UInt8]
        let isSaving: Bool

        /// A value that lies at `offset` with the width of `Field`.
        mutating func field<Value: FixedWidthInteger, Field: FixedWidthInteger>(
            _ value: inout Value, _ offset: Int, as type: Field.Type
        ) {
            let place = offset - Int(SystemManagementSaveArea.offset)
            if isSaving {
                let field = Field(truncatingIfNeeded: value).littleEndian
                bytes.withUnsafeMutableBytes { $0.storeBytes(of: field, toByteOffset: place, as: Field.self) }
            } else {
                let field = bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: place, as: Field.self) }
                value = Value(truncatingIfNeeded: Field(littleEndian: field))
            }
        }

        /// A bit in a byte of its own.
        mutating func flag(_ value: inout Bool, _ offset: Int) {
            var byte: UInt8 = value ? 1 : 0
            field(&byte, offset, as: UInt8.self)
            value = byte & 1 != 0
        }

        /// The number by which handlers know the layout: SMBASE can be changed, I/O instructions are not restarted.
        mutating func revision(_ number: UInt32) {
            var number = number
            field(&number, 0xFEFC, as: UInt32.self)
        }

        mutating func segment64(_ segment: inout Segment, _ offset: Int) {
            field(&segment.selector, offset, as: UInt16.self)
            attributes(&segment, offset + 2, shift: 0, as: UInt16.self)
            field(&segment.limit, offset + 4, as: UInt32.self)
            field(&segment.base, offset + 8, as: UInt64.self)
        }

        mutating func hiddenPart32(_ segment: inout Segment, _ offset: Int) {
            attributes(&segment, offset, shift: 8, as: UInt32.self)
            field(&segment.limit, offset + 4, as: UInt32.self)
            field(&segment.base, offset + 8, as: UInt32.self)
        }

        /// An unusable segment is one that is not present.
        private mutating func attributes<Field: FixedWidthInteger>(
            _ segment: inout Segment, _ offset: Int, shift: UInt32, as type: Field.Type
        ) {
            var value = UInt32(segment.attributes)
            if segment.isUnusable { value &= ~UInt32(Segment.presentAttribute) }
            value <<= shift
            field(&value, offset, as: Field.self)
            segment.attributes = UInt16(truncatingIfNeeded: value >> shift) & 0xF0FF
            segment.isUnusable = segment.attributes & Segment.presentAttribute == 0
        }
    }
}

extension Segment {
    fileprivate static var presentAttribute: UInt16 { 1 << 7 }
}
