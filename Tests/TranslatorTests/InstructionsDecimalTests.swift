import Testing
import Translator
import X86

@Suite struct InstructionsDecimalTests {
    /// FNV-1a of AX and the defined flags for all AL, CF and AF and four AH.
    private func digest(_ defined: UInt64, _ adjust: (DecimalAdjust) -> DecimalAdjust) -> UInt64 {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for high: UInt16 in [0, 0x7F, 0xFF, 0x12] {
            for carries in UInt64(0)..<4 {
                let flags = (carries & 1 != 0 ? RFlags.carry : 0) | (carries & 2 != 0 ? RFlags.auxiliary : 0)
                for low in UInt16(0)..<256 {
                    let result = adjust(DecimalAdjust(ax: high << 8 | low, flags: flags))
                    for word in [result.ax, UInt16(result.flags & defined)] {
                        hash = (hash ^ UInt64(word & 0xFF)) &* 0x100_0000_01B3
                        hash = (hash ^ UInt64(word >> 8)) &* 0x100_0000_01B3
                    }
                }
            }
        }
        return hash
    }

    /// The expected digests were taken from a processor in 32-bit mode.
    @Test func agreesWithAProcessor() {
        let carries = RFlags.carry | RFlags.auxiliary
        let results = RFlags.sign | RFlags.zero | RFlags.parity
        #expect(digest(carries, \.aaa) == 0xD22E_3001_1A31_2C85)
        #expect(digest(carries, \.aas) == 0x4C05_B84C_B014_6905)
        #expect(digest(carries | results, \.daa) == 0xB84B_26E2_9046_59CD)
        #expect(digest(carries | results, \.das) == 0x6B29_AF95_7E30_FC11)
        #expect(digest(results) { $0.aam(10) } == 0xB856_80DB_FDF1_B125)
        #expect(digest(results) { $0.aad(10) } == 0xBAE4_C644_9D2A_9F25)
        #expect(digest(results) { $0.aam(7) } == 0xF74A_4AC0_8702_60E5)
        #expect(digest(results) { $0.aad(7) } == 0xD4B3_C512_E59E_CB25)
    }

    /// The examples of the manual.
    @Test func manualExamples() {
        // 79H + 35H = AEH.
        let sum = DecimalAdjust(ax: 0xAE, flags: 0).daa
        #expect(sum.ax == 0x14)
        #expect(sum.flags & (RFlags.carry | RFlags.auxiliary) == RFlags.carry | RFlags.auxiliary)
        // 35H - 47H = EEH, with borrows.
        let difference = DecimalAdjust(ax: 0xEE, flags: RFlags.carry | RFlags.auxiliary).das
        #expect(difference.ax == 0x88)
        #expect(difference.flags & RFlags.carry != 0)
        #expect(difference.flags & RFlags.sign != 0)
    }
}
