/// bzImages around arbitrary bytes.
enum PackedKernel {
    private static let payloadOffset = 0x40
    private static let setupByteCount = 1024
    /// The 64-bit entry of the protected-mode part, and some code.
    private static let minimumByteCount = 0x210

    /// A bzImage with a header that is right, whatever `payload` is.
    /// > Source: Documentation/arch/x86/boot.rst.
    static func bzImage(payload: [UInt8]) -> [UInt8] {
        var image = [UInt8](repeating: 0, count: setupByteCount + payloadOffset) + payload
        image += [UInt8](repeating: 0, count: max(-image.count & 15, setupByteCount + minimumByteCount - image.count))
        let byteCount = UInt32(image.count - setupByteCount)
        image[0x1F1] = UInt8(setupByteCount / 512 - 1)
        put(byteCount / 16, at: 0x1F4, in: &image)
        put(0xAA55, at: 0x1FE, byteCount: 2, in: &image)
        put(0x6AEB, at: 0x200, byteCount: 2, in: &image)
        image.replaceSubrange(0x202..<0x206, with: Array("HdrS".utf8))
        put(0x020F, at: 0x206, byteCount: 2, in: &image)
        image[0x211] = 1
        put(0x10_0000, at: 0x214, in: &image)
        put(0x7FFF_FFFF, at: 0x22C, in: &image)
        put(0x20_0000, at: 0x230, in: &image)
        image[0x234] = 1
        image[0x236] = 1
        put(2047, at: 0x238, in: &image)
        put(UInt32(payloadOffset), at: 0x248, in: &image)
        put(UInt32(payload.count), at: 0x24C, in: &image)
        put(0x100_0000, at: 0x258, in: &image)
        put(0x10_0000, at: 0x260, in: &image)
        return image
    }

    /// `contents` in the legacy LZ4 format, as literals, with the size that the kernel's build appends.
    static func lz4(_ contents: [UInt8]) -> [UInt8] {
        var block: [UInt8] = []
        if contents.count < 15 {
            block.append(UInt8(contents.count) << 4)
        } else {
            let rest = contents.count - 15
            block.append(0xF0)
            block += [UInt8](repeating: 255, count: rest / 255)
            block.append(UInt8(rest % 255))
        }
        block += contents
        return [0x02, 0x21, 0x4C, 0x18] + bytes(UInt32(block.count)) + block + bytes(UInt32(contents.count))
    }

    private static func bytes(_ value: UInt32) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }

    private static func put(_ value: UInt32, at offset: Int, byteCount: Int = 4, in image: inout [UInt8]) {
        image.replaceSubrange(offset..<offset + byteCount, with: bytes(value).prefix(byteCount))
    }
}
