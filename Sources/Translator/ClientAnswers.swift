/// What the client has answered for the instruction being executed, in the order of its accesses.
///
/// An instruction that needs the client is executed again from its start after each answer, so it takes the earlier ones
/// again first.
struct ClientAnswers {
    // Storage stays; an exit allocates nothing.
    private var values = [UInt64](repeating: 0, count: 8)
    /// What each answer is for; ports and addresses.
    private var places = [UInt64](repeating: 0, count: 8)
    private var count = 0
    private var used = 0
    /// How many are used up for good.
    private var completed = 0

    var isEmpty: Bool { count == completed }

    mutating func append(_ value: UInt64, to request: ClientRequest) { append(value, place: request.place) }

    private mutating func append(_ value: UInt64, place: UInt64) {
        if count == values.count {
            values.append(0)
            places.append(0)
        }
        values[count] = value
        places[count] = place
        count += 1
    }

    /// Notes a write that somebody other than the client has made, in the place of the client's acknowledgement.
    mutating func noteWrite(at place: UInt64) {
        append(0, place: place)
        used = count
    }

    /// The answer to the next access, if there is one.
    mutating func next() -> UInt64? {
        guard used < count else { return nil }
        used += 1
        return values[used - 1]
    }

    /// Takes the next answer if it is for an access of `place`: the client has made that access, so nobody else may, even who
    /// would now.
    mutating func takeAcknowledgement(of place: UInt64) -> Bool {
        guard used < count, places[used] == place else { return false }
        used += 1
        return true
    }

    /// The instruction starts over.
    mutating func rewind() { used = completed }

    /// A part of the instruction is complete: the answers used so far are not taken again.
    mutating func removeUsed() {
        completed = used
        if isEmpty { removeAll() }
    }

    mutating func removeAll() {
        count = 0
        used = 0
        completed = 0
    }
}

extension ClientRequest {
    /// The port, the address, or the number of the register.
    fileprivate var place: UInt64 {
        switch self {
        case .portIn(let port, _), .portInString(let port, _, _), .portOut(let port, _, _): UInt64(port)
        case .mmioRead(let address, _), .mmioWrite(let address, _, _): address
        case .msrRead(let index, _), .msrWrite(let index, _, _): UInt64(index)
        }
    }
}
