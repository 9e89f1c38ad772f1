import CHost
import KVMInterface
import SystemPackage

// The machine's clock.

extension UserspaceVM {
    func getClock(at argument: UInt) throws(Errno) {
        let tsc = martlet_rdtsc()
        var data = ClockData()
        data.clock = clock.nanoseconds(atHostTSC: tsc)
        data.flags = UInt32(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC)
        data.realtime = WallClock.nanoseconds()
        data.host_tsc = tsc
        try ClientMemory.copyOut(data, to: argument)
    }

    /// Sets the clock; with a time of day, to what it shows now if it then showed the given value.
    /// - Throws: `EINVAL` for unknown flags.
    func setClock(at argument: UInt) throws(Errno) {
        var data = ClockData()
        try ClientMemory.copyIn(&data, from: argument)
        let known = UInt32(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC)
        guard data.flags & ~known == 0 else { throw .invalidArgument }
        var nanoseconds = data.clock
        let now = WallClock.nanoseconds()
        if data.flags & UInt32(KVM_CLOCK_REALTIME) != 0, now > data.realtime { nanoseconds &+= now &- data.realtime }
        clock.set(nanoseconds: nanoseconds)
        vcpus.forEach { vcpu in
            vcpu.signal(.clockChanged)
            return true
        }
    }
}
