import CHost
import Glibc
import SystemPackage

/// A range of host address space with one owner, unmapped when the owner ends.
///
/// Pages are committed when touched (`MAP_NORESERVE`), so a mapping may be far larger than the machine's memory.
/// Does not guard against use after the owner ended: pointers derived from `baseAddress` must not outlive it.
public struct MemoryMapping: ~Copyable, @unchecked Sendable {
    /// The first byte; page-aligned.
    public let baseAddress: UnsafeMutableRawPointer
    /// The length in bytes; a multiple of the page size.
    public let byteCount: Int

    /// What accesses the pages allow.
    public struct Protection: OptionSet, Sendable {
        public let rawValue: Int32
        public init(rawValue: Int32) { self.rawValue = rawValue }

        public static let read = Protection(rawValue: PROT_READ)
        public static let write = Protection(rawValue: PROT_WRITE)
        public static let execute = Protection(rawValue: PROT_EXEC)
        public static let none: Protection = []
        public static let readWrite: Protection = [.read, .write]
    }

    private init(_ address: UnsafeMutableRawPointer, _ byteCount: Int) {
        self.baseAddress = address
        self.byteCount = byteCount
    }

    deinit { _ = munmap(baseAddress, byteCount) }

    /// Maps fresh zeroed memory of this process alone.
    ///
    /// - Parameter byteCount: positive; rounded up to whole pages.
    /// - Parameter alignment: a power of two; the base is a multiple of it.
    /// - Throws: `Errno.invalidArgument` if `byteCount` is not positive, `Errno.noMemory` if the range is not to be had.
    public static func anonymous(
        byteCount: Int, protection: Protection = .readWrite, alignment: Int = 4096
    ) throws(Errno) -> MemoryMapping {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        guard alignment > 4096 else { return try map(nil, byteCount, protection, flags, -1, 0) }
        precondition(alignment & (alignment - 1) == 0, "alignment must be a power of two: \(alignment)")
        let size = try roundedToPages(byteCount)
        let (padded, overflow) = size.addingReportingOverflow(alignment)
        guard !overflow else { throw .noMemory }
        let whole = try map(nil, padded, protection, flags, -1, 0)
        let start = UInt(bitPattern: whole.release().address)
        let aligned = (start + UInt(alignment) - 1) & ~(UInt(alignment) - 1)
        let end = start + UInt(padded)
        // SAFETY: `start ..< end` was mapped above and is owned by nobody else; head and tail are returned, and the
        // aligned middle gets its owner in the last line.
        if aligned > start { _ = munmap(UnsafeMutableRawPointer(bitPattern: start), Int(aligned - start)) }
        let middleEnd = aligned + UInt(size)
        if end > middleEnd { _ = munmap(UnsafeMutableRawPointer(bitPattern: middleEnd), Int(end - middleEnd)) }
        return MemoryMapping(UnsafeMutableRawPointer(bitPattern: aligned)!, size)
    }

    /// Reserves address space that faults until a part is mapped with `place`.
    public static func reserve(byteCount: Int, alignment: Int = 4096) throws(Errno) -> MemoryMapping {
        try anonymous(byteCount: byteCount, protection: .none, alignment: alignment)
    }

    /// Maps fresh zeroed memory that can be mapped once more, by ``duplicate(_:at:)`` or ``alias(of:at:protection:)``.
    ///
    /// - Throws: as ``anonymous(byteCount:protection:alignment:)``.
    public static func sharedAnonymous(byteCount: Int) throws(Errno) -> MemoryMapping {
        try map(nil, byteCount, .readWrite, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    }

    /// Maps shared memory once more, which may have been made by two mappings.
    ///
    /// - Parameters:
    ///   - memory: whole pages that `sharedAnonymous` or `share` made.
    ///   - boundary: where in `memory` the second mapping begins, on a page; outside, if there is one mapping only.
    ///   - placement: where it is to appear.
    ///   - byteCount: of the range; what lies behind `memory` faults.
    /// - Returns: the address. The caller unmaps it.
    /// - Throws: `Errno.fileExists` if the range is not free though it should be, else as `mmap`.
    public static func alias(
        of memory: UnsafeMutableRawBufferPointer, boundary: Int = .max, at placement: Placement,
        byteCount: Int, protection: Protection
    ) throws(Errno) -> UnsafeMutableRawPointer {
        let size = try roundedToPages(byteCount)
        let target = try placeholder(placement, size)
        let end = min(size, memory.count)
        let middle = max(0, min(boundary, end))
        for part in [0..<middle, middle..<end] where !part.isEmpty {
            let placed = martlet_duplicate_mapping(
                memory.baseAddress! + part.lowerBound, part.count, target + part.lowerBound)
            if placed == MAP_FAILED {
                let error = lastError()
                munmap(target, size)
                throw error
            }
        }
        if protection != .readWrite, mprotect(target, end, protection.rawValue) != 0 {
            let error = lastError()
            munmap(target, size)
            throw error
        }
        return target
    }

    /// Where a mapping is to appear.
    public enum Placement {
        case anywhere
        /// In the place of what is there.
        case replacing(UnsafeMutableRawPointer)
        /// There, if nothing is there.
        case free(UnsafeMutableRawPointer)
    }

    private static func placeholder(_ placement: Placement, _ size: Int) throws(Errno) -> UnsafeMutableRawPointer {
        let common = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        let (address, flags): (UnsafeMutableRawPointer?, Int32) =
            switch placement {
            case .anywhere: (nil, common)
            case .replacing(let address): (address, common | MAP_FIXED)
            case .free(let address): (address, common | MAP_FIXED_NOREPLACE)
            }
        guard let target = mmap(address, size, PROT_NONE, flags, -1, 0), target != MAP_FAILED else { throw lastError() }
        // Before Linux 4.17 the flag is a hint.
        if case .free(let address) = placement, target != address {
            munmap(target, size)
            throw .fileExists
        }
        return target
    }

    /// Maps a part of a file, shared with everything else that maps it.
    ///
    /// - Parameter offset: a multiple of the page size.
    public static func shared(
        _ file: borrowing OwnedDescriptor, offset: Int = 0, byteCount: Int, protection: Protection = .readWrite
    ) throws(Errno) -> MemoryMapping {
        try map(nil, byteCount, protection, MAP_SHARED | MAP_NORESERVE, file.rawValue, offset)
    }

    /// Replaces a part of this mapping by a part of a file, shared; the same part of a file may be placed at several
    /// addresses, which then alias.
    ///
    /// - Parameter range: in bytes from `baseAddress`, whole pages, inside the mapping.
    /// - Throws: `Errno.invalidArgument` if the range leaves the mapping or is not whole pages, else as `mmap`.
    public borrowing func place(
        _ file: borrowing OwnedDescriptor, offset: Int, in range: Range<Int>, protection: Protection = .readWrite
    ) throws(Errno) {
        try check(range)
        guard martlet_take_mapping() != 0 else { throw .noMemory }
        let placed = mmap(
            baseAddress + range.lowerBound, range.count, protection.rawValue,
            MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file.rawValue, offset)
        if placed == MAP_FAILED { throw lastError() }
    }

    /// Replaces a part of this mapping by zeroed memory that `duplicate` can map once more.
    ///
    /// - Throws: as `place`.
    public borrowing func share(_ range: Range<Int>) throws(Errno) {
        try check(range)
        guard martlet_take_mapping() != 0 else { throw .noMemory }
        let mapped = mmap(
            baseAddress + range.lowerBound, range.count, PROT_READ | PROT_WRITE,
            MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0)
        if mapped == MAP_FAILED { throw lastError() }
    }

    /// Maps a part that was made with `share` once more, in the place of another part: both are the same memory then.
    ///
    /// Takes one or two of the mappings that a process may have (`vm.max_map_count`).
    /// - Throws: as `place`.
    public borrowing func duplicate(_ range: Range<Int>, at offset: Int) throws(Errno) {
        try check(range)
        try check(offset..<offset + range.count)
        try duplicate(range, to: baseAddress + offset)
    }

    /// The same, in the place of a part of another mapping.
    public borrowing func duplicate(
        _ range: Range<Int>, in target: borrowing MemoryMapping, at offset: Int
    ) throws(Errno) {
        try check(range)
        try target.check(offset..<offset + range.count)
        try duplicate(range, to: target.baseAddress + offset)
    }

    private borrowing func duplicate(_ range: Range<Int>, to address: UnsafeMutableRawPointer) throws(Errno) {
        guard martlet_take_mapping() != 0 else { throw .noMemory }
        let mapped = martlet_duplicate_mapping(baseAddress + range.lowerBound, range.count, address)
        if mapped == MAP_FAILED { throw lastError() }
    }

    /// Changes what accesses a part of the mapping allows. The C function is `mprotect`.
    public borrowing func protect(_ range: Range<Int>, _ protection: Protection) throws(Errno) {
        try check(range)
        if mprotect(baseAddress + range.lowerBound, range.count, protection.rawValue) != 0 { throw lastError() }
    }

    /// Drops the pages of a part: private memory reads as zero afterwards. The C function is `madvise(MADV_DONTNEED)`.
    public borrowing func discardPages(_ range: Range<Int>) throws(Errno) {
        try advise(range, MADV_DONTNEED)
    }

    /// Gives the kernel advice (`MADV_…`) on a part. The C function is `madvise`.
    public borrowing func advise(_ range: Range<Int>, _ advice: Int32) throws(Errno) {
        try check(range)
        if madvise(baseAddress + range.lowerBound, range.count, advice) != 0 { throw lastError() }
    }

    /// Gives the range up without unmapping it.
    public consuming func release() -> (address: UnsafeMutableRawPointer, byteCount: Int) {
        let result = (baseAddress, byteCount)
        discard self
        return result
    }

    private borrowing func check(_ range: Range<Int>) throws(Errno) {
        guard range.lowerBound >= 0, range.upperBound <= byteCount, !range.isEmpty,
            range.lowerBound & 4095 == 0, range.upperBound & 4095 == 0
        else { throw .invalidArgument }
    }

    private static func roundedToPages(_ byteCount: Int) throws(Errno) -> Int {
        guard byteCount > 0 else { throw .invalidArgument }
        let (sum, overflow) = byteCount.addingReportingOverflow(4095)
        guard !overflow else { throw .noMemory }
        return sum & ~4095
    }

    private static func map(
        _ address: UnsafeMutableRawPointer?, _ byteCount: Int, _ protection: Protection, _ flags: Int32, _ fd: Int32,
        _ offset: Int
    ) throws(Errno) -> MemoryMapping {
        let size = try roundedToPages(byteCount)
        guard martlet_take_mapping() != 0 else { throw .noMemory }
        let mapped = mmap(address, size, protection.rawValue, flags, fd, offset)
        guard let mapped, mapped != MAP_FAILED else { throw lastError() }
        return MemoryMapping(mapped, size)
    }
}

extension MemoryMapping {
    /// Lets a test fail mappings: of those that `body` makes on this thread, all but the first `count`.
    package static func failing<Result>(after count: Int, _ body: () -> Result) -> Result {
        martlet_set_mappings_left(Int64(count))
        defer { martlet_set_mappings_left(-1) }
        return body()
    }
}
