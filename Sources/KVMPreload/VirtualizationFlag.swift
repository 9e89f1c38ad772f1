import CHost
import CPreload
import Glibc
import Host
import Translator
import X86

/// Makes the program find a processor with virtualization where it asks with CPUID itself, as some do before they open
/// `/dev/kvm`.
///
/// Where the host's processor shows none, each CPUID in the program's own code becomes an instruction that is always illegal
/// and as long (UD2), and the signal's handler performs it: with the host's answer, and VMX or SVM set in it. Libraries stay
/// as they are: theirs look for other things.
///
/// Bytes that look like CPUID may be part of another instruction, or data. So only those are taken for one that an
/// instruction begins at if the function around them, as the unwinding tables know it, is decoded from its start.
///
/// > Source: Intel SDM, volume 3, 24.6; AMD APM, volume 2, 15.4.
enum VirtualizationFlag {
    /// CPUID.
    private static let instruction: (UInt8, UInt8) = (0x0F, 0xA2)
    /// The second byte of UD2.
    private static let illegal: UInt8 = 0x0B

    /// Where the program asks for the flag: one leaf and a bit of its ECX, by the processor's vendor.
    private struct Place {
        var leaf: UInt32
        var bit: UInt32

        /// > Note: runs in the signal's handler: no memory, no locks.
        static func on(isAMD: Bool) -> Place {
            isAMD ? Place(leaf: 0x8000_0001, bit: 1 << 2) : Place(leaf: 1, bit: 1 << 5)
        }
    }

    /// What the handler needs: set before the first instruction is changed, and never again.
    private nonisolated(unsafe) static var place = Place(leaf: 0, bit: 0)
    /// Addresses of changed instructions, in order. Never freed.
    private nonisolated(unsafe) static var sites = UnsafeMutableBufferPointer<UInt>(start: nil, count: 0)

    /// > Concurrency: before the program's first instruction.
    static func show() {
        place = .on(isAMD: isAMD)
        guard martlet_cpuid(place.leaf, 0).ecx & place.bit == 0 else { return }
        let code = martlet_preload_program_code()
        let found = instructions(in: UnsafeMutableRawBufferPointer(start: code.start, count: code.count))
        guard !found.isEmpty else { return }
        sites = .allocate(capacity: found.count)
        _ = sites.initialize(fromContentsOf: found)
        HostFaults.emulateIllegalInstructions { VirtualizationFlag.perform($0) }
        martlet_preload_watch_signals()
        HostFaults.admit()
        for site in found { makeIllegal(site) }
    }

    /// AMD's and Hygon's processors share their leaves.
    private static var isAMD: Bool {
        let name = martlet_cpuid(0, 0).ebx
        return name == 0x6874_7541 || name == 0x6F67_7948
    }

    /// The addresses of every CPUID in `code`, in order.
    private static func instructions(in code: UnsafeMutableRawBufferPointer) -> [UInt] {
        guard let start = code.baseAddress, code.count >= 2 else { return [] }
        var found: [UInt] = []
        let end = start + code.count
        var next = start + 1
        // The second byte is the rarer one.
        while next < end, let second = memchr(next, CInt(instruction.1), end - next) {
            next = second + 1
            let first = UnsafeRawPointer(second - 1)
            guard first.load(as: UInt8.self) == instruction.0, isInstruction(first) else { continue }
            found.append(UInt(bitPattern: first))
        }
        return found
    }

    private static func isInstruction(_ address: UnsafeRawPointer) -> Bool {
        guard let function = martlet_preload_function(address.assumingMemoryBound(to: UInt8.self)) else { return false }
        let offset = address - UnsafeRawPointer(function)
        guard offset >= 0 else { return false }
        return Decoder.hasInstruction(at: offset, of: UnsafeRawBufferPointer(start: function, count: offset + 2))
    }

    /// Where the system forbids it, the instruction stays as it is.
    private static func makeIllegal(_ site: UInt) {
        let page = UnsafeMutableRawPointer(bitPattern: site & ~4095)
        let byteCount = Int(site & 4095) + 2
        // Executable all the time: a system that forbids this forbids it before anything is changed.
        guard mprotect(page, byteCount, PROT_READ | PROT_WRITE | PROT_EXEC) == 0 else { return }
        UnsafeMutableRawPointer(bitPattern: site + 1)?.storeBytes(of: illegal, as: UInt8.self)
        mprotect(page, byteCount, PROT_READ | PROT_EXEC)
    }

    /// Performs the CPUID that stood where the thread is, if one did.
    ///
    /// > Concurrency: a signal handler.
    private static func perform(_ registers: UnsafeMutablePointer<UInt64>) -> Bool {
        let pc = UInt(registers[Int(MARTLET_REG_RIP)])
        var (low, high) = (0, sites.count)
        while low < high {
            let middle = (low &+ high) / 2
            if sites[middle] < pc { low = middle &+ 1 } else { high = middle }
        }
        guard low < sites.count, sites[low] == pc else { return false }
        let leaf = UInt32(truncatingIfNeeded: registers[Int(MARTLET_REG_RAX)])
        var answer = martlet_cpuid(leaf, UInt32(truncatingIfNeeded: registers[Int(MARTLET_REG_RCX)]))
        if leaf == place.leaf { answer.ecx |= place.bit }
        registers[Int(MARTLET_REG_RAX)] = UInt64(answer.eax)
        registers[Int(MARTLET_REG_RBX)] = UInt64(answer.ebx)
        registers[Int(MARTLET_REG_RCX)] = UInt64(answer.ecx)
        registers[Int(MARTLET_REG_RDX)] = UInt64(answer.edx)
        registers[Int(MARTLET_REG_RIP)] += 2
        return true
    }
}
