import GuestMemory
import Interrupts
import Translator

extension UserspaceVCPU {
    /// Writes the guest's time structure, if the guest asked for one and there is memory for it.
    ///
    /// While it changes, its version is odd: other vCPUs of the guest may read it.
    /// > Concurrency: the owner, inside.
    func writeParavirtualClock() {
        guard paravirtualClock.isEnabled else { return }
        let address = paravirtualClock.systemTime & ~1
        let info = paravirtualClock.timeInfo(clock: vm.clock, tscOffset: processor.system.tscOffset)
        writeVersioned(info, at: address)
    }

    /// > Concurrency: the owner, inside.
    func writeWallClock(at address: UInt64) {
        guard address != 0 else { return }
        writeVersioned(ParavirtualClock.wallClockInfo(clock: vm.clock, version: 2), at: address)
    }

    /// Writes a structure that begins with a version: first an odd one, then the rest, then the version in `bytes`.
    private func writeVersioned(_ bytes: [UInt8], at address: UInt64) {
        var busy = Array(bytes[..<4])
        busy[0] |= 1
        writeGuest(busy, at: address)
        writeGuest(Array(bytes[4...]), at: address &+ 4)
        writeGuest(Array(bytes[..<4]), at: address)
    }
}
