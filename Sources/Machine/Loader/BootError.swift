import SystemPackage

/// Why a guest cannot be started from what the user gave.
///
/// Each description is one line: what was given, what was expected, what to do.
public enum BootError: Error, Equatable, Sendable {
    case noKernel
    case unreadable(BootFile, name: String, Errno)
    case empty(BootFile, name: String)
    case tooLarge(BootFile, name: String, limit: UInt64)
    case outOfHostMemory(BootFile, name: String)
    case kernel(name: String, KernelImageError)
    /// The kernel asks for `range`, which is not RAM it may use.
    case kernelOutsideRAM(name: String, start: UInt64, end: UInt64, reason: String)
    /// The kernel and its tables need RAM up to `needed`.
    case memoryTooSmall(given: UInt64, needed: UInt64)
    /// RAM does not begin at 0 with enough room for the loader's own pages.
    case noLowMemory(given: UInt64)
    case initramfsDoesNotFit(name: String, byteCount: UInt64, available: UInt64, ramByteCount: UInt64)
    case commandLineTooLong(byteCount: Int, limit: Int)
    case commandLineHasNUL
    case noProcessor
    case tooManyProcessors(count: Int, limit: Int)
    case tooManyRAMRegions(count: Int, limit: Int)
}

/// The files a guest is started from.
public enum BootFile: String, Sendable {
    case kernel
    case initramfs

    var option: String { self == .kernel ? "--kernel" : "--initramfs" }
}

extension BootError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .noKernel:
            return "no kernel was given; name an x86-64 bzImage (vmlinuz) or ELF vmlinux with --kernel"
        case .unreadable(let file, let name, let errno):
            let name = name.isEmpty ? "''" : name
            return "\(file.rawValue) \(name) cannot be read: \(errno); give \(file.option) a file you may read"
        case .empty(let file, let name):
            return "\(file.rawValue) \(name) is empty; copy or download it again"
        case .tooLarge(let file, let name, let limit):
            let advice =
                file == .initramfs
                ? "make it smaller or give the guest more memory (--memory)" : "is it really a kernel?"
            return "\(file.rawValue) \(name) is larger than \(describe(byteCount: limit)), the most that can be used; "
                + advice
        case .outOfHostMemory(let file, let name):
            return "\(file.rawValue) \(name) cannot be read: the host is out of memory; free some"
        case .kernel(let name, let error):
            return "kernel \(name) \(error)"
        case .kernelOutsideRAM(let name, let start, let end, let reason):
            return "kernel \(name) wants memory \(hexadecimal(start))–\(hexadecimal(end)), \(reason)"
        case .memoryTooSmall(let given, let needed):
            return "the guest has \(describe(byteCount: given)) of memory, but its kernel needs "
                + "\(describe(byteCount: (needed + 0xF_FFFF) & ~0xF_FFFF)) to start; give it more (--memory)"
        case .noLowMemory(let given):
            return "the guest has \(describe(byteCount: given)) of memory at address 0, expected at least "
                + "\(describe(byteCount: GuestLoader.minimumLowRAMByteCount)); give it more (--memory)"
        case .initramfsDoesNotFit(let name, let byteCount, let available, let ramByteCount):
            return "initramfs \(name) has \(describe(byteCount: byteCount)), but beside the kernel a guest of "
                + "\(describe(byteCount: ramByteCount)) has room for \(describe(byteCount: available)); "
                + "make it smaller or give the guest more memory (--memory)"
        case .commandLineTooLong(let byteCount, let limit):
            return "the kernel command line has \(byteCount) bytes, but this kernel takes at most \(limit); shorten it"
        case .commandLineHasNUL:
            return "the kernel command line contains a NUL byte, which would end it early; remove it"
        case .noProcessor:
            return "the guest has no processor; give it at least one (--cpus)"
        case .tooManyProcessors(let count, let limit):
            return
                "the guest has \(count) processors, but the ACPI tables hold at most \(limit); give it fewer (--cpus)"
        case .tooManyRAMRegions(let count, let limit):
            return "the guest's memory map has \(count) entries, but boot_params holds \(limit); use fewer RAM regions"
        }
    }
}
