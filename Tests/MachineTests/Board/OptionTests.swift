import Machine
import Testing

@Suite struct MemorySizeTests {
    @Test(
        arguments: [
            ("4096", 4096), ("4K", 4096), ("512M", 512 << 20), ("512m", 512 << 20), ("2G", 2 << 30), ("1T", 1 << 40),
            ("size=512M", 512 << 20), ("131072K", 128 << 20)
        ] as [(String, UInt64)])
    func isParsed(text: String, byteCount: UInt64) throws {
        #expect(try MemorySize(parsing: text).byteCount == byteCount)
    }

    @Test(arguments: [
        "", "0", "0M", "-1M", "+1M", "1", "4097", "6K", "12X", "M", "1.5G", "0x1000", " 512M", "512 M", "512MB",
        "99999999999999999999", "16777216T", "18014398509481984K", "size=", "size=1M,size=1M", "sice=1M", "size=1M,",
        "size=1M,shared=on", "=", "١K"
    ])
    func isRefused(text: String) {
        let error = #expect(throws: InvalidOption.self) { try MemorySize(parsing: text) }
        #expect(error?.description.contains("expected") == true)
        #expect(error?.description.contains("\n") == false)
    }

    @Test func isDescribedWithItsLargestUnit() throws {
        #expect("\(try MemorySize(parsing: "2048M"))" == "2G")
        #expect("\(try MemorySize(parsing: "1536M"))" == "1536M")
        #expect("\(try MemorySize(parsing: "12K"))" == "12K")
    }
}

@Suite struct ProcessorCountTests {
    @Test(arguments: [
        ("1", 1, 1), ("8", 8, 8), ("boot=2,max=8", 2, 8), ("max=8,boot=2", 2, 8), ("boot=3", 3, 3), ("254", 254, 254)
    ])
    func isParsed(text: String, boot: Int, maximum: Int) throws {
        #expect(try ProcessorCount(parsing: text) == ProcessorCount(boot: boot, maximum: maximum))
    }

    @Test(arguments: [
        "", "0", "-1", "two", "255", "99999999999999999999", "boot=0", "boot=4,max=2", "max=4", "boot=1,max=255",
        "boot=", "boot=1,boot=1", "boot=1,cores=2", "1,2", "boot=1,", "2.0"
    ])
    func isRefused(text: String) {
        let error = #expect(throws: InvalidOption.self) { try ProcessorCount(parsing: text) }
        #expect(error?.description.contains("expected") == true)
    }
}
