import Testing
import Translator
import X86

@Suite struct InstructionsExtendedStateTests {
    /// A page with distinct values in every register.
    private func filledPage() -> StatePage {
        let page = StatePage()
        for index in 0..<16 {
            for byte in 0..<32 {
                page.state.vectorRegister(index).storeBytes(
                    of: UInt8(truncatingIfNeeded: index * 32 + byte + 1), toByteOffset: byte, as: UInt8.self)
            }
        }
        let area = page.state.fxsaveArea
        area.storeBytes(of: 0x027F, as: UInt16.self)
        area.storeBytes(of: 0x3841, toByteOffset: 2, as: UInt16.self)
        area.storeBytes(of: 0x81, toByteOffset: 4, as: UInt8.self)
        // What the host's own FXSAVE would leak: opcode and pointers.
        area.storeBytes(of: 0x7FF, toByteOffset: 6, as: UInt16.self)
        area.storeBytes(of: 0x7FFF_1234_5678, toByteOffset: 8, as: UInt64.self)
        area.storeBytes(of: 0x7FFF_8765_4321, toByteOffset: 16, as: UInt64.self)
        for index in 0..<8 {
            area.storeBytes(
                of: UInt64(index) &* 0x0101_0101_0101_0101 | 1 << 63, toByteOffset: 32 + index * 16, as: UInt64.self)
            area.storeBytes(of: 0x3FFF, toByteOffset: 40 + index * 16, as: UInt64.self)
        }
        page.state.mxcsr = 0x1FA0
        return page
    }

    @Test func saveWritesTheStandardLayout() {
        let page = filledPage()
        let image = Image(byteCount: 832, filledWith: 0xEE)
        image.base.storeBytes(of: 0, toByteOffset: 512, as: UInt64.self)
        ExtendedState.save(page.state, to: image.base, requested: 7, registerCount: 16, isOptimized: false)
        #expect(image.word16(0) == 0x027F)
        #expect(image.word16(2) == 0x3841)
        #expect(image.word16(4) == 0x81)
        #expect(image.word16(6) == 0)
        #expect(image.word64(8) == 0)
        #expect(image.word64(16) == 0)
        #expect(image.word32(24) == 0x1FA0)
        #expect(image.word32(28) == ExtendedState.mxcsrMask)
        for index in 0..<8 {
            #expect(image.word64(32 + index * 16) == UInt64(index) &* 0x0101_0101_0101_0101 | 1 << 63)
            #expect(image.word64(40 + index * 16) == 0x3FFF)
        }
        for index in 0..<16 {
            for byte in 0..<16 {
                #expect(image.bytes[160 + index * 16 + byte] == UInt8(truncatingIfNeeded: index * 32 + byte + 1))
                #expect(image.bytes[576 + index * 16 + byte] == UInt8(truncatingIfNeeded: index * 32 + byte + 17))
            }
        }
        #expect(image.word64(512) == 7)
        // Neither the software-available bytes nor the rest of the header are written.
        #expect(image.bytes[416..<512].allSatisfy { $0 == 0xEE })
        #expect(image.bytes[520..<576].allSatisfy { $0 == 0xEE })
    }

    @Test func saveKeepsWhatIsNotRequested() {
        let page = filledPage()
        let image = Image(byteCount: 832, filledWith: 0xEE)
        image.base.storeBytes(of: 0x8000_0000_0000_0005, toByteOffset: 512, as: UInt64.self)
        ExtendedState.save(page.state, to: image.base, requested: 2, registerCount: 8, isOptimized: false)
        #expect(image.word64(512) == 0x8000_0000_0000_0007)
        #expect(image.bytes[0..<24].allSatisfy { $0 == 0xEE })
        #expect(image.word32(24) == 0x1FA0)
        #expect(image.bytes[32..<160].allSatisfy { $0 == 0xEE })
        #expect(image.bytes[160] == 1)
        #expect(image.bytes[288..<512].allSatisfy { $0 == 0xEE })
        #expect(image.bytes[576...].allSatisfy { $0 == 0xEE })
    }

    @Test func optimizedSaveSkipsUnusedUpperHalves() {
        let page = filledPage()
        for index in 0..<16 {
            (page.state.vectorRegister(index) + 16).initializeMemory(as: UInt8.self, repeating: 0, count: 16)
        }
        let image = Image(byteCount: 832, filledWith: 0xEE)
        image.base.storeBytes(of: 4, toByteOffset: 512, as: UInt64.self)
        ExtendedState.save(page.state, to: image.base, requested: 7, registerCount: 16, isOptimized: true)
        #expect(image.word64(512) == 3)
        #expect(image.bytes[576...].allSatisfy { $0 == 0xEE })
        ExtendedState.save(page.state, to: image.base, requested: 7, registerCount: 16, isOptimized: false)
        #expect(image.word64(512) == 3)
        #expect(image.bytes[576...].allSatisfy { $0 == 0 })
    }

    @Test func restoreBringsBackWhatWasSaved() throws {
        let source = filledPage()
        let image = Image(byteCount: 832)
        ExtendedState.save(source.state, to: image.base, requested: 7, registerCount: 16, isOptimized: true)
        let target = StatePage()
        try ExtendedState.restore(target.state, from: image.base, requested: 7, enabled: 7, registerCount: 16)
        let second = Image(byteCount: 832)
        ExtendedState.save(target.state, to: second.base, requested: 7, registerCount: 16, isOptimized: true)
        #expect(image.bytes == second.bytes)
    }

    @Test func restoreInitializesWhatIsNotPresent() throws {
        let page = filledPage()
        let image = Image(byteCount: 832, filledWith: 0xEE)
        for word in 64..<72 { image.base.storeBytes(of: 0, toByteOffset: word * 8, as: UInt64.self) }
        image.base.storeBytes(of: 0x1F80, toByteOffset: 24, as: UInt32.self)
        try ExtendedState.restore(page.state, from: image.base, requested: 7, enabled: 7, registerCount: 16)
        let area = page.state.fxsaveArea
        #expect(area.load(as: UInt64.self) == 0x37F)
        #expect((32..<160).allSatisfy { area.load(fromByteOffset: $0, as: UInt8.self) == 0 })
        #expect(page.state.mxcsr == 0x1F80)
        for index in 0..<16 {
            #expect(
                (0..<32).allSatisfy { page.state.vectorRegister(index).load(fromByteOffset: $0, as: UInt8.self) == 0 })
        }
    }

    @Test func restoreChecksTheHeader() throws {
        let page = filledPage()
        let before = Array(UnsafeRawBufferPointer(start: page.state.base, count: 4096))
        func fails(_ change: (UnsafeMutableRawPointer) -> Void, requested: UInt64 = 7, enabled: UInt64 = 7) -> Bool {
            let image = Image(byteCount: 832)
            image.base.storeBytes(of: 0x1F80, toByteOffset: 24, as: UInt32.self)
            change(image.base)
            do {
                try ExtendedState.restore(
                    page.state, from: image.base, requested: requested, enabled: enabled, registerCount: 16)
                return false
            } catch {
                return error == .generalProtection()
            }
        }
        #expect(fails { $0.storeBytes(of: 8, toByteOffset: 512, as: UInt64.self) })
        #expect(fails({ $0.storeBytes(of: 4, toByteOffset: 512, as: UInt64.self) }, requested: 3, enabled: 3))
        #expect(fails { $0.storeBytes(of: 1 << 63, toByteOffset: 520, as: UInt64.self) })
        #expect(fails { $0.storeBytes(of: 1, toByteOffset: 528, as: UInt64.self) })
        #expect(fails { $0.storeBytes(of: 0x1_1F80, toByteOffset: 24, as: UInt32.self) })
        #expect(Array(UnsafeRawBufferPointer(start: page.state.base, count: 4096)) == before)
        // MXCSR does not matter to x87 alone.
        #expect(!fails({ $0.storeBytes(of: 0x1_1F80, toByteOffset: 24, as: UInt32.self) }, requested: 1))
    }

    @Test func legacyRestoreChecksMXCSRAndNormalizes() throws {
        let page = StatePage()
        let image = Image(byteCount: 512)
        image.base.storeBytes(of: 0x1_0000, toByteOffset: 24, as: UInt32.self)
        #expect(throws: GuestFault.generalProtection()) {
            try ExtendedState.restoreLegacy(page.state, from: image.base, xmmCount: 16)
        }
        image.base.storeBytes(of: 0x1F80, toByteOffset: 24, as: UInt32.self)
        image.base.storeBytes(of: 0xFFFF, as: UInt16.self)
        image.base.storeBytes(of: 0xFFFF_FFFF_FFFF_FFFF, toByteOffset: 40, as: UInt64.self)
        try ExtendedState.restoreLegacy(page.state, from: image.base, xmmCount: 16)
        #expect(page.state.fxsaveArea.load(as: UInt16.self) == 0x1F7F)
        #expect(page.state.fxsaveArea.load(fromByteOffset: 40, as: UInt64.self) == 0xFFFF)
        // An exception flag that is not masked is an exception waiting.
        image.base.storeBytes(of: 0x340, as: UInt16.self)
        image.base.storeBytes(of: 1, toByteOffset: 2, as: UInt16.self)
        try ExtendedState.restoreLegacy(page.state, from: image.base, xmmCount: 16)
        #expect(page.state.fxsaveArea.load(fromByteOffset: 2, as: UInt16.self) == 0x8081)
    }

    @Test func sizes() {
        #expect(ExtendedState.byteCount(3) == 576)
        #expect(ExtendedState.byteCount(7) == 832)
        let leaf = CPUIDResult(eax: 7, ebx: 1, ecx: 832, edx: 0)
        func adjusted(_ function: UInt32, _ index: UInt32, _ leaf: CPUIDResult, cr4: UInt64, xcr0: UInt64)
            -> CPUIDResult
        {
            CPUIDAdjustment.adjusted(leaf, function: function, index: index, cr4: cr4, xcr0: xcr0)
        }
        #expect(adjusted(0xD, 0, leaf, cr4: 0, xcr0: 1).ebx == 576)
        #expect(adjusted(0xD, 0, leaf, cr4: 0, xcr0: 7).ebx == 832)
        #expect(adjusted(0xD, 0, CPUIDResult(), cr4: 0, xcr0: 7) == CPUIDResult())
        #expect(adjusted(1, 5, CPUIDResult(), cr4: CR4.xsave, xcr0: 7).ecx == 1 << 27)
        #expect(adjusted(1, 0, CPUIDResult(ecx: ~0), cr4: 0, xcr0: 7).ecx == ~(1 << 27))
        #expect(adjusted(7, 0, CPUIDResult(ecx: ~0), cr4: ~0, xcr0: 7).ecx == ~(1 << 4))
    }
}
