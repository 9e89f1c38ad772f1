import Glibc

/// The registers of a ``RealTimeClock``.
///
/// Time does not run by itself here: each access brings the flags up to the moment it is given.
struct RTCRegisters {
    /// The register that the data port reaches.
    var index = 0
    /// The level last told to the interrupt controller.
    var isInterruptAsserted = false
    /// When the owner will next be woken, on its monotonic clock.
    var nextWake: UInt64?

    private var memory = [UInt8](repeating: 0, count: 128)
    /// Guest time minus host time.
    private var offset: Int64 = 0
    /// The moment of guest time up to which the flags are true.
    private var settledTo: Int64
    /// The guest time at which updates were stopped by the SET bit.
    private var stopped: Int64?

    private enum Register {
        static let seconds = 0x00
        static let secondsAlarm = 0x01
        static let minutes = 0x02
        static let minutesAlarm = 0x03
        static let hours = 0x04
        static let hoursAlarm = 0x05
        static let weekday = 0x06
        static let day = 0x07
        static let month = 0x08
        static let year = 0x09
        static let a = 0x0A
        static let b = 0x0B
        static let c = 0x0C
        static let d = 0x0D
        static let century = 0x32
    }

    private enum B {
        static let hours24: UInt8 = 1 << 1
        static let binary: UInt8 = 1 << 2
        /// Update-ended, alarm and periodic interrupts: the flags in register C are at the same places.
        static let interrupts: UInt8 = 0x70
        static let updateEnded: UInt8 = 1 << 4
        static let alarm: UInt8 = 1 << 5
        static let periodic: UInt8 = 1 << 6
        static let set: UInt8 = 1 << 7
    }

    private static let second: Int64 = 1_000_000_000
    /// How long before an update the clock announces it.
    private static let updateNotice: Int64 = 244_000

    init(now: Int64) {
        settledTo = now
        memory[Register.a] = 0x26  // 32.768 kHz time base, periodic rate 1024 Hz
        memory[Register.b] = B.hours24
    }

    /// Stores the size of RAM where firmware does: KiB above 1 MiB, 64 KiB units above 16 MiB and above 4 GiB.
    mutating func storeMemorySize(low: UInt64, high: UInt64) {
        func store(_ value: UInt64, limit: UInt64, at registers: [Int]) {
            var rest = min(value, limit)
            for register in registers {
                memory[register] = UInt8(truncatingIfNeeded: rest)
                rest >>= 8
            }
        }
        store(640, limit: 640, at: [0x15, 0x16])
        let aboveOneMegabyte = low > 1 << 20 ? (low - (1 << 20)) >> 10 : 0
        store(aboveOneMegabyte, limit: 0xFFFF, at: [0x17, 0x18])
        store(aboveOneMegabyte, limit: 0xFFFF, at: [0x30, 0x31])
        store(low > 16 << 20 ? (low - (16 << 20)) >> 16 : 0, limit: 0xFFFF, at: [0x34, 0x35])
        store(high >> 16, limit: 0xFF_FFFF, at: [0x5B, 0x5C, 0x5D])
    }

    // MARK: Access

    mutating func read(now: Int64) -> UInt8 {
        switch index {
        case Register.seconds, Register.minutes, Register.hours, Register.weekday, Register.day, Register.month,
            Register.year, Register.century:
            return encoded(index, of: fields(at: guestTime(now)))
        case Register.a:
            let intoSecond = modulo(guestTime(now), Self.second)
            let isUpdating = stopped == nil && intoSecond >= Self.second - Self.updateNotice
            return memory[Register.a] & 0x7F | (isUpdating ? 0x80 : 0)
        case Register.c:
            advance(to: now)
            defer { memory[Register.c] = 0 }
            return memory[Register.c] | (wantsInterrupt ? 0x80 : 0)
        case Register.d:
            return 0x80  // the battery is good
        default:
            return memory[index]
        }
    }

    mutating func write(_ value: UInt8, now: Int64) {
        switch index {
        case Register.seconds, Register.minutes, Register.hours, Register.weekday, Register.day, Register.month,
            Register.year, Register.century:
            advance(to: now)
            setTime(index, value, now: now)
        case Register.a:
            advance(to: now)
            memory[Register.a] = value & 0x7F
        case Register.b:
            advance(to: now)
            writeB(value, now: now)
        case Register.c, Register.d:
            break  // read-only
        default:
            memory[index] = value
        }
    }

    private mutating func writeB(_ value: UInt8, now: Int64) {
        if value & B.set != 0 {
            if stopped == nil { stopped = guestTime(now) }
        } else if let time = stopped {
            offset = time - now
            stopped = nil
            settledTo = time
        }
        memory[Register.b] = value
    }

    // MARK: Time of day

    private func guestTime(_ now: Int64) -> Int64 { stopped ?? now + offset }

    private func fields(at time: Int64) -> tm {
        var seconds = time_t((time - modulo(time, Self.second)) / Self.second)
        var fields = tm()
        gmtime_r(&seconds, &fields)
        return fields
    }

    private func encoded(_ register: Int, of time: tm) -> UInt8 {
        switch register {
        case Register.seconds: return encode(time.tm_sec)
        case Register.minutes: return encode(time.tm_min)
        case Register.hours: return encodeHour(time.tm_hour)
        case Register.weekday: return encode(time.tm_wday + 1)
        case Register.day: return encode(time.tm_mday)
        case Register.month: return encode(time.tm_mon + 1)
        case Register.year: return encode((time.tm_year + 1900) % 100)
        default: return encode((time.tm_year + 1900) / 100)
        }
    }

    private mutating func setTime(_ register: Int, _ value: UInt8, now: Int64) {
        var time = fields(at: guestTime(now))
        let number = decode(value)
        let year = time.tm_year + 1900
        switch register {
        case Register.seconds: time.tm_sec = number
        case Register.minutes: time.tm_min = number
        case Register.hours: time.tm_hour = decodeHour(value)
        case Register.weekday: return  // follows from the date
        case Register.day: time.tm_mday = number
        case Register.month: time.tm_mon = number - 1
        case Register.year: time.tm_year = year / 100 * 100 + number - 1900
        default: time.tm_year = number * 100 + year % 100 - 1900
        }
        let new = Int64(timegm(&time)) * Self.second
        if stopped != nil { stopped = new } else { offset = new - now }
        settledTo = new
    }

    private func encode(_ value: CInt) -> UInt8 {
        let value = UInt8(truncatingIfNeeded: value)
        return memory[Register.b] & B.binary != 0 ? value : (value / 10) << 4 | value % 10
    }

    private func decode(_ value: UInt8) -> CInt {
        CInt(memory[Register.b] & B.binary != 0 ? value : value >> 4 &* 10 &+ value & 0x0F)
    }

    /// In the 12-hour form, bit 7 says afternoon.
    private func encodeHour(_ hour: CInt) -> UInt8 {
        if memory[Register.b] & B.hours24 != 0 { return encode(hour) }
        return encode(hour % 12 == 0 ? 12 : hour % 12) | (hour >= 12 ? 0x80 : 0)
    }

    private func decodeHour(_ value: UInt8) -> CInt {
        if memory[Register.b] & B.hours24 != 0 { return decode(value) }
        return decode(value & 0x7F) % 12 + (value & 0x80 != 0 ? 12 : 0)
    }

    // MARK: Flags and interrupts

    /// Whether an enabled flag is set.
    var wantsInterrupt: Bool { memory[Register.b] & memory[Register.c] & B.interrupts != 0 }

    /// Sets the flags of everything that happened since the last call.
    mutating func advance(to now: Int64) {
        let time = guestTime(now)
        let past = settledTo
        settledTo = time
        guard time > past else { return }
        if let period = periodNanoseconds, floorDivide(time, period) > floorDivide(past, period) {
            memory[Register.c] |= B.periodic
        }
        let firstUpdate = floorDivide(past, Self.second) + 1
        let lastUpdate = floorDivide(time, Self.second)
        guard stopped == nil, lastUpdate >= firstUpdate else { return }
        memory[Register.c] |= B.updateEnded
        if let alarm = nextAlarm(from: firstUpdate), alarm <= lastUpdate { memory[Register.c] |= B.alarm }
    }

    /// How long until an enabled flag that is clear will be set; nil if that cannot happen.
    func nanosecondsToNextInterrupt(now: Int64) -> Int64? {
        let missing = memory[Register.b] & ~memory[Register.c] & B.interrupts
        let time = guestTime(now)
        var next: Int64?
        func consider(_ moment: Int64) { next = min(next ?? moment, moment) }
        if missing & B.periodic != 0, let period = periodNanoseconds {
            consider((floorDivide(time, period) + 1) * period)
        }
        if stopped == nil {
            let nextSecond = floorDivide(time, Self.second) + 1
            if missing & B.updateEnded != 0 { consider(nextSecond * Self.second) }
            if missing & B.alarm != 0, let alarm = nextAlarm(from: nextSecond) { consider(alarm * Self.second) }
        }
        return next.map { max(0, $0 - time) }
    }

    /// The first second, `start` or later, that matches the alarm registers; 0xC0 and above match anything.
    private func nextAlarm(from start: Int64) -> Int64? {
        func matches(_ register: Int, _ value: Int64, _ encode: (CInt) -> UInt8) -> Bool {
            memory[register] >= 0xC0 || memory[register] == encode(CInt(value))
        }
        let day: Int64 = 86400
        var second = start
        // Skips hours and minutes that do not match, so a day takes 24 + 60 + 60 steps at most.
        while second < start + day {
            let intoDay = modulo(second, day)
            if !matches(Register.hoursAlarm, intoDay / 3600, encodeHour) {
                second += 3600 - intoDay % 3600
            } else if !matches(Register.minutesAlarm, intoDay / 60 % 60, encode) {
                second += 60 - intoDay % 60
            } else if !matches(Register.secondsAlarm, intoDay % 60, encode) {
                second += 1
            } else {
                return second
            }
        }
        return nil
    }

    /// The time between periodic interrupts; nil if they are off.
    private var periodNanoseconds: Int64? {
        var rate = Int64(memory[Register.a] & 0x0F)
        guard rate != 0 else { return nil }
        // With a 32.768 kHz time base the two fastest rates repeat slower ones.
        if rate < 3 { rate += 7 }
        return (Self.second << (rate - 1)) / 32768
    }
}

private func modulo(_ value: Int64, _ divisor: Int64) -> Int64 {
    let rest = value % divisor
    return rest < 0 ? rest + divisor : rest
}

private func floorDivide(_ value: Int64, _ divisor: Int64) -> Int64 { (value - modulo(value, divisor)) / divisor }
