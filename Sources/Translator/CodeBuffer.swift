import CHost
import Glibc
import Synchronization
import SystemPackage

/// Memory for translated code, mapped twice: writable for the translator, executable for the processors.
///
/// > Concurrency: the translation cache's lock guards writing. Patches of jump displacements are aligned 4-byte stores.
final class CodeBuffer {
    let writable: UnsafeMutableRawPointer
    let executable: UnsafeMutableRawPointer
    let byteCount: Int

    /// Patches since the writable mapping was given back. Races lose counts, no more.
    private let patchCount = Atomic<Int>(0)
    private static var patchLimit: Int { 256 }

    /// - Throws: the errno of the failed mapping; `EACCES` where policy forbids executable memory.
    init(byteCount: Int) throws(Errno) {
        let file = martlet_memfd_create("martlet-code", UInt32(MARTLET_MFD_CLOEXEC))
        guard file >= 0 else { throw Errno(rawValue: errno) }
        defer { close(file) }
        guard ftruncate(file, off_t(byteCount)) == 0 else { throw Errno(rawValue: errno) }
        guard let writable = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), writable != MAP_FAILED
        else { throw Errno(rawValue: errno) }
        guard let executable = mmap(nil, byteCount, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0),
            executable != MAP_FAILED
        else {
            let error = Errno(rawValue: errno)
            munmap(writable, byteCount)
            throw error
        }
        self.writable = writable
        self.executable = executable
        self.byteCount = byteCount
    }

    deinit {
        munmap(writable, byteCount)
        munmap(executable, byteCount)
    }

    /// The range of executable addresses.
    var addresses: Range<UInt64> {
        let start = UInt64(UInt(bitPattern: executable))
        return start..<start + UInt64(byteCount)
    }

    func emitter(from offset: Int) -> Emitter {
        Emitter(writable: writable + offset, byteCount: byteCount - offset, executable: executable + offset)
    }

    /// Gives back the memory of everything behind `offset`; its contents become zero.
    func discard(from offset: Int) {
        let start = (offset + 4095) & ~4095
        if start < byteCount { madvise(writable + start, byteCount - start, MADV_REMOVE) }
    }

    /// Takes the pages of `range` out of the writable mapping; the code stays, and a later patch brings its page back.
    func release(_ range: Range<Int>) {
        madvise(writable + range.lowerBound, range.count, MADV_DONTNEED)
    }

    /// Redirects the jump whose displacement lies at executable `place` to `target`.
    func patch(_ place: UInt64, to target: UInt64) {
        let offset = Int(place &- UInt64(UInt(bitPattern: executable)))
        let displacement = Int32(truncatingIfNeeded: Int64(bitPattern: target &- (place &+ 4)))
        // SAFETY: displacements of links are aligned; an atomic integer has the size and layout of the integer.
        let word = (writable + offset).assumingMemoryBound(to: Atomic<Int32>.self)
        // ORDERING: relaxed; processors see the old or the new target, both are valid blocks. Several vCPUs may link at once.
        word.pointee.store(displacement, ordering: .relaxed)
        // Each patch brings pages back into the writable mapping.
        let count = patchCount.load(ordering: .relaxed) + 1
        patchCount.store(count % Self.patchLimit, ordering: .relaxed)
        if count == Self.patchLimit { release(0..<byteCount) }
    }
}
