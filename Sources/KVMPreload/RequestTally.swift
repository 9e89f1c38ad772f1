import CHost
import Glibc
import Host
import KVMInterface
import UserspaceKVM

/// What `martlet kvm --stats` prints when the client ends: how often each request was made, how long they took, and why
/// vCPUs returned.
///
/// > Concurrency: any thread.
final class RequestTally: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: guarded by `lock`.

    private struct Line {
        var count: UInt64 = 0
        var failures: UInt64 = 0
        var nanoseconds: UInt64 = 0
    }

    private let lock = FutexLock()
    private var requests: [UInt32: Line] = [:]
    private var exits: [UInt32: UInt64] = [:]

    func count(_ request: UInt32, _ result: Int32, _ exit: VCPUExitDescription?, nanoseconds: UInt64) {
        lock.withLock {
            requests[request, default: Line()].count += 1
            requests[request, default: Line()].nanoseconds += nanoseconds
            if result < 0 { requests[request, default: Line()].failures += 1 }
            if let exit { exits[exit.reason, default: 0] += 1 }
        }
    }

    /// Prints when the process ends by `exit`.
    func printAtExit() {
        atexit { if let tally = Session.existing?.tally { tally.print() } }
    }

    func print() {
        ClientSignals.enterCore()
        defer { ClientSignals.leaveCore() }
        let (requests, exits) = lock.withLock { (self.requests, self.exits) }
        var text = "martlet: requests of process \(getpid())\n"
        text += Self.row("request", "count", "failed", "time")
        for (request, line) in requests.sorted(by: { $0.value.nanoseconds > $1.value.nanoseconds }) {
            let name = RequestName.of(request) ?? "0x" + String(request, radix: 16)
            let microseconds = line.nanoseconds / 1000
            let time = "\(microseconds / 1000).\(String(1000 + microseconds % 1000).dropFirst()) ms"
            text += Self.row(name, String(line.count), String(line.failures), time)
        }
        for (reason, count) in exits.sorted(by: { $0.value > $1.value }) {
            text += Self.row(ExitName.of(reason), String(count), "", "")
        }
        text.withUTF8 { bytes in _ = Glibc.write(STDERR_FILENO, bytes.baseAddress, bytes.count) }
    }

    private static func row(_ name: String, _ columns: String...) -> String {
        let cells = columns.map { String(repeating: " ", count: max(0, 14 - $0.count)) + $0 }
        let row = name + String(repeating: " ", count: max(1, 34 - name.count)) + cells.joined()
        return String(row.reversed().drop { $0 == " " }.reversed()) + "\n"
    }
}
