import Glibc
import SystemPackage

/// Makes bare guests: assembler sources become ELF kernels with a PVH note, which every loader here starts the same way
/// (32-bit protected mode, no paging, EBX at `hvm_start_info`).
public enum GuestAssembler {
    /// What the assembler said against a source.
    public struct Failure: Error, CustomStringConvertible {
        public let description: String
    }

    public static let isAvailable = access(compiler, X_OK) == 0
    public static let missing = "needs gcc to assemble bare guests"

    private static var compiler: String { "/usr/bin/gcc" }

    /// Goes before every source: the note, and the section the source continues in.
    private static var prologue: String {
        """
            .section .note.pvh, "a", @note
            .balign 4
            .long 4, 4, 18
            .asciz "Xen"
            .long start
            .section .note.GNU-stack, "", @progbits
            .text
            .code32
            .globl start

        """
    }

    /// One loadable segment, with the note at its end.
    private static func layout(_ address: UInt64) -> String {
        """
        ENTRY(start)
        PHDRS { load PT_LOAD FLAGS(7); note PT_NOTE FLAGS(4); }
        SECTIONS {
            . = 0x\(String(address, radix: 16));
            .text : { *(.text) *(.user) . = ALIGN(4096); *(.data) *(.rodata) } :load
            .note.pvh : { *(.note.pvh) } :load :note
            .bss : { *(.bss) } :load
            /DISCARD/ : { *(*) }
        }

        """
    }

    /// Assembles `source`, which defines `start`, and links it at `address`.
    ///
    /// - Parameter includes: a directory whose files the source may `.include`.
    /// - Returns: the path of the kernel, in `directory`.
    public static func kernel(
        _ source: String, name: String, in directory: ScratchDirectory, at address: UInt64 = 0x10_0000,
        includes: String? = nil, definitions: [String: Int] = [:]
    ) throws -> String {
        let file = directory.write(Array((prologue + source).utf8), to: "\(name).s")
        let script = directory.write(Array(layout(address).utf8), to: "\(name).ld")
        let kernel = "\(directory.path)/\(name).elf"
        var arguments = [
            compiler, "-Wa,--fatal-warnings", "-m64", "-nostdlib", "-static", "-no-pie", "-x", "assembler", "-o",
            kernel,
            "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096", "-Wl,-z,noexecstack", "-Wl,--no-warn-rwx-segments",
            "-Wl,-T,\(script)"
        ]
        if let includes { arguments += ["-Wa,-I,\(includes)"] }
        for (symbol, value) in definitions.sorted(by: { $0.key < $1.key }) {
            arguments += ["-Wa,--defsym,\(symbol)=\(value)"]
        }
        let child = try ChildProcess(arguments + [file])
        guard child.wait() == .exited(0) else { throw Failure(description: "\(name): \(child.errorText)") }
        return kernel
    }
}
