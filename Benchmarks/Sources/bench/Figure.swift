/// One row of the table of workloads.
struct Figure {
    /// What a figure should be at most.
    enum Aim {
        /// So many times the native figure.
        case native(Double)
        /// QEMU's figure.
        case qemu
        case nanoseconds(Double)
        case none
    }

    /// The workload's name in the workloads' program.
    let name: String
    /// What it is, and what one operation is.
    let title: String
    let aim: Aim
    /// Whether it can run on the host itself, without privilege.
    var runsNatively = true

    /// What runs on one processor, in the order of the table.
    static let all: [Figure] = [
        Figure(name: "sieve", title: "sieve of a million", aim: .native(5)),
        Figure(name: "interpreter", title: "switch interpreter, an instruction", aim: .native(5)),
        Figure(name: "sha256", title: "SHA-256 in C, 64 bytes", aim: .native(5)),
        Figure(name: "quicksort", title: "quicksort of 100,000", aim: .none),
        Figure(name: "gzip", title: "gzip -6 of 256 KiB", aim: .none),
        Figure(name: "nbody-sse2", title: "n-body, SSE2, a step", aim: .native(4)),
        Figure(name: "matmul", title: "matrix product 128³, SSE2", aim: .native(4)),
        Figure(name: "nbody-x87", title: "n-body, x87, a step", aim: .native(4)),
        Figure(name: "movsb-64k", title: "`rep movsb` 64 KiB", aim: .native(4)),
        Figure(name: "movsb-1m", title: "`rep movsb` 1 MiB", aim: .native(4)),
        Figure(name: "stosb-64k", title: "`rep stosb` 64 KiB", aim: .native(4)),
        Figure(name: "stosb-1m", title: "`rep stosb` 1 MiB", aim: .native(4)),
        Figure(name: "chase-32k", title: "pointer chase in 32 KiB, a load", aim: .none),
        Figure(name: "chase-16m", title: "pointer chase in 16 MiB, a load", aim: .none),
        Figure(name: "rewriting", title: "code that rewrites itself, a call", aim: .none),
        Figure(name: "getpid", title: "getpid", aim: .qemu),
        Figure(name: "page-fault", title: "page fault (mmap, touch, munmap)", aim: .qemu),
        Figure(name: "fork-exec", title: "fork + exec + wait", aim: .qemu),
        Figure(name: "context-switch", title: "context switch over pipes", aim: .qemu),
        Figure(name: "port-output", title: "port output, exit and back", aim: .nanoseconds(500), runsNatively: false)
    ]
}
