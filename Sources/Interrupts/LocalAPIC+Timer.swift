/// How the timer counts. The raw values are bits 18–17 of its entry in the local vector table.
enum LocalTimerMode: UInt32, Sendable {
    case oneShot = 0
    case periodic = 1
    case tscDeadline = 2
    /// Does not count.
    case reserved = 3
}

extension LocalAPIC {
    /// Periodic timers do not run faster than this, or a guest could keep the host busy with its timer alone.
    static let minimumPeriodNanoseconds: UInt64 = 200_000

    var timerMode: LocalTimerMode {
        LocalTimerMode(rawValue: localVectors[.timer] >> 17 & 3) ?? .reserved
    }

    /// Bus cycles per count: 1, 2, 4 … 128. The bus runs at 1 GHz, so these are nanoseconds.
    var timerDivisor: UInt64 {
        let code = divideConfiguration & 3 | divideConfiguration >> 1 & 4
        return 1 << UInt64((code &+ 1) & 7)
    }

    /// Fires the timer if its time has come, and arms the next run of a periodic one. Runs that were missed are lost, as
    /// on hardware whose interrupt is still pending.
    ///
    /// - Returns: whether the timer expired, masked or not.
    /// > Concurrency: the owner.
    @discardableResult
    public func serviceTimer(now: GuestTime) -> Bool {
        guard let deadline = timerDeadlineNanoseconds, now.nanoseconds >= deadline else { return false }
        switch timerMode {
        case .periodic where timerPeriod != 0:
            let missed = (now.nanoseconds &- deadline) / timerPeriod
            arm(at: deadline.saturatingAdd((missed &+ 1).multipliedReportingOverflow(by: timerPeriod).partialValue))
        case .tscDeadline:
            tscDeadline = 0
            arm(at: nil)
        default:
            arm(at: nil)
        }
        raise(.timer)
        return true
    }

    /// Computes the timer's deadline anew after a change of the guest's TSC or of its frequency.
    /// > Concurrency: the owner.
    public func rearmTimer(now: GuestTime) {
        if timerMode == .tscDeadline { armTSCDeadline(now: now) }
    }

    /// The current-count register.
    func currentCount(at now: GuestTime) -> UInt32 {
        guard timerMode != .tscDeadline, timerPeriod != 0, let deadline = timerDeadlineNanoseconds else { return 0 }
        let count = remaining(until: deadline, at: now) / timerDivisor
        return UInt32(truncatingIfNeeded: min(count, UInt64(initialCount)))
    }

    func setInitialCount(_ value: UInt32, now: GuestTime) {
        guard timerMode != .tscDeadline else { return }
        initialCount = value
        updatePeriod()
        startTimer(count: value, now: now)
    }

    func setDivideConfiguration(_ value: UInt32, now: GuestTime) {
        let count = currentCount(at: now)
        divideConfiguration = value & 0xB
        guard timerMode != .tscDeadline else { return }
        updatePeriod()
        if timerDeadlineNanoseconds != nil { startTimer(count: count, now: now) }
    }

    func setTSCDeadline(_ value: UInt64, now: GuestTime) {
        guard timerMode == .tscDeadline else { return }
        tscDeadline = value
        armTSCDeadline(now: now)
    }

    /// To be called after a write to the timer's entry. Entering or leaving TSC-deadline mode disarms the timer.
    func timerModeDidChange(from old: LocalTimerMode) {
        let new = timerMode
        guard new != old else { return }
        if new == .tscDeadline || old == .tscDeadline || new == .reserved {
            initialCount = 0
            timerPeriod = 0
            tscDeadline = 0
            arm(at: nil)
        } else {
            updatePeriod()
        }
    }

    /// Continues a run of which `count` counts remain (a client's saved state, or a new divisor).
    func startTimer(count: UInt32, now: GuestTime) {
        guard count != 0, timerMode == .oneShot || timerMode == .periodic else { return arm(at: nil) }
        var delay = UInt64(count) &* timerDivisor
        if timerMode == .periodic { delay = max(delay, Self.minimumPeriodNanoseconds) }
        arm(at: now.nanoseconds.saturatingAdd(delay))
    }

    func updatePeriod() {
        timerPeriod = UInt64(initialCount) &* timerDivisor
        if timerMode == .periodic, timerPeriod != 0 {
            timerPeriod = max(timerPeriod, Self.minimumPeriodNanoseconds)
        }
    }

    private func remaining(until deadline: UInt64, at now: GuestTime) -> UInt64 {
        if now.nanoseconds < deadline { return deadline &- now.nanoseconds }
        // Expired, and the owner has not been told yet.
        guard timerMode == .periodic else { return 0 }
        return timerPeriod &- (now.nanoseconds &- deadline) % timerPeriod
    }

    private func armTSCDeadline(now: GuestTime) {
        guard tscDeadline != 0 else { return arm(at: nil) }
        let ticks = tscDeadline > now.tsc ? tscDeadline &- now.tsc : 0
        let delay = scale(ticks, by: 1_000_000, over: tscFrequencyKilohertz, roundingUp: true)
        arm(at: now.nanoseconds.saturatingAdd(delay))
    }

    private func arm(at deadline: UInt64?) {
        guard deadline != timerDeadlineNanoseconds else { return }
        timerDeadlineNanoseconds = deadline
        host.armTimer(deadlineNanoseconds: deadline)
    }
}
