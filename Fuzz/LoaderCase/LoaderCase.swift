import Addressing
import Glibc
import Machine

/// Loads hostile kernels into guest RAM between guard pages.
///
/// An input is five bytes of options and a file:
///
/// | byte | holds |
/// |---|---|
/// | 0 | the entry protocol (bits 0–1), the guest unpacks (bit 2), what the file is (bits 3–4), the RAM's size (bits 5–6) |
/// | 1 | the initramfs in units of 4 KiB; 0: none |
/// | 2 | the length of the command line in units of 16 bytes |
/// | 3 | the number of processors less one |
/// | 4 | nothing |
///
/// The file is a kernel; or the payload of a bzImage whose header is right; or an ELF file to be packed in such a bzImage,
/// with LZ4, the format without checksums.
public struct LoaderCase: Sendable {
    /// RAM that loads share: the loader promises nothing about its old contents.
    private let memories: [GuestRAM]

    public init() {
        memories = [4, 16, 24, 64].map { megabytes in Self.guardedRAM(byteCount: megabytes << 20) }
    }

    /// RAM with an inaccessible page on either side. It is never unmapped.
    private static func guardedRAM(byteCount: Int) -> GuestRAM {
        let page = 4096
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        guard let base = mmap(nil, byteCount + 2 * page, PROT_NONE, flags, -1, 0), base != MAP_FAILED,
            mprotect(base + page, byteCount, PROT_READ | PROT_WRITE) == 0
        else { fatalError("no memory for the guest") }
        let host = HostVirtualAddress(UInt(bitPattern: base + page))
        let region = GuestRAM.Region(start: GuestPhysicalAddress(0), byteCount: UInt64(byteCount), host: host)
        return GuestRAM(regions: [region], owner: nil)
    }

    /// Loads `input`, and traps where the loader broke a promise.
    /// - Returns: whether it was a kernel.
    @discardableResult
    public func run(_ input: UnsafeRawBufferPointer) -> Bool {
        guard input.count > 5 else { return false }
        let file = [UInt8](input[5...])
        let kernel: [UInt8]
        switch input[0] >> 3 & 3 {
        case 1: kernel = PackedKernel.bzImage(payload: file)
        case 2: kernel = PackedKernel.bzImage(payload: PackedKernel.lz4(file))
        default: kernel = file
        }
        let entries = GuestLoader.EntryProtocol.allCases
        let ram = memories[Int(input[0] >> 5 & 3)]
        let initramfs: BootSource? =
            input[1] == 0 ? nil : .bytes([UInt8](repeating: 0x55, count: Int(input[1]) << 12), name: "initramfs")
        let loader = GuestLoader(
            kernel: .bytes(kernel, name: "kernel"), initramfs: initramfs,
            commandLine: String(repeating: "console=ttyS0 a ", count: Int(input[2])),
            unpack: input[0] & 4 == 0 ? .host : .guest, entry: entries[Int(input[0] & 3) % entries.count],
            processors: (0...UInt32(input[3])).map { .init(id: $0) })
        do throws(BootError) {
            check(try loader.load(into: ram), in: ram)
            return true
        } catch {
            let message = error.description
            if message.isEmpty || message.contains("\n") { fatalError("a message is one line: \(message)") }
            return false
        }
    }

    /// What holds for every guest that loads.
    private func check(_ guest: LoadedGuest, in ram: GuestRAM) {
        if guest.kernelRange.upperBound > ram.lowEnd { fatalError("the kernel lies outside RAM") }
        if let initramfs = guest.initramfsRange {
            if initramfs.upperBound > ram.lowEnd { fatalError("the initramfs lies outside RAM") }
            if initramfs.overlaps(guest.kernelRange) { fatalError("the initramfs overwrites the kernel") }
        }
    }
}
