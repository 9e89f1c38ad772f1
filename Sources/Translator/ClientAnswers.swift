/// What the client has answered for the instruction being executed, in the order of its accesses.
///
/// An instruction that needs the client is executed again from its start after each answer, so it takes the earlier ones
/// again first.
struct ClientAnswers {
    // Storage stays; an exit allocates nothing.
    private var values = [UInt64](repeating: 0, count: 8)
    private var count = 0
    private var used = 0
    /// How many are used up for good.
    private var completed = 0

    var isEmpty: Bool { count == completed }

    mutating func append(_ value: UInt64) {
        if count < values.count { values[count] = value } else { values.append(value) }
        count += 1
    }

    /// The answer to the next access, if there is one.
    mutating func next() -> UInt64? {
        guard used < count else { return nil }
        used += 1
        return values[used - 1]
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
