import CHost

/// One number that a machine or a virtual CPU tells about itself.
struct Statistic {
    enum Kind {
        /// Only grows.
        case cumulative
        /// The state now.
        case instant
        /// A state that is 0 or 1.
        case boolean
    }

    let name: String
    let kind: Kind
    let value: UInt64

    init(_ name: String, _ value: UInt64) { self.init(name, .cumulative, value) }

    init(_ name: String, _ kind: Kind, _ value: UInt64) {
        self.name = name
        self.kind = kind
        self.value = value
    }

    /// The type and unit bits of `kvm_stats_desc.flags`.
    var flags: UInt32 {
        switch kind {
        case .cumulative: UInt32(KVM_STATS_TYPE_CUMULATIVE) | UInt32(KVM_STATS_UNIT_NONE)
        case .instant: UInt32(KVM_STATS_TYPE_INSTANT) | UInt32(KVM_STATS_UNIT_NONE)
        case .boolean: UInt32(KVM_STATS_TYPE_INSTANT) | UInt32(KVM_STATS_UNIT_BOOLEAN)
        }
    }
}

/// Statistics as the file that `KVM_GET_STATS_FD` gives: a header, an identifier, descriptions and values.
///
/// > Source: Documentation/virt/kvm/api.rst, "KVM_GET_STATS_FD".
struct StatisticsFile: Sendable {
    /// What names the object, as "kvm-1234" or "kvm-1234/vcpu-0".
    let identifier: String
    /// The same names in the same order each time.
    let statistics: @Sendable () -> [Statistic]

    /// Room for an identifier or a name, with its zero.
    private static let nameByteCount = 48

    /// Copies from the file's contents as they are now.
    ///
    /// - Returns: how many bytes there were; 0 behind the end.
    func read(at offset: Int, into buffer: UnsafeMutableRawBufferPointer) -> Int {
        let part = part(at: offset, byteCount: buffer.count)
        buffer.copyBytes(from: part)
        return part.count
    }

    /// A part of the file's contents as they are now; none behind the end.
    func part(at offset: Int, byteCount: Int) -> ArraySlice<UInt8> {
        let contents = contents
        guard offset >= 0, offset < contents.count else { return [] }
        return contents[offset...].prefix(max(0, byteCount))
    }

    private var contents: [UInt8] {
        let statistics = statistics()
        let headerByteCount = MemoryLayout<kvm_stats_header>.size
        let descriptorByteCount = MemoryLayout<kvm_stats_desc>.size + Self.nameByteCount
        let descriptorOffset = headerByteCount + Self.nameByteCount
        let header = kvm_stats_header(
            flags: 0, name_size: UInt32(Self.nameByteCount), num_desc: UInt32(statistics.count),
            id_offset: UInt32(headerByteCount), desc_offset: UInt32(descriptorOffset),
            data_offset: UInt32(descriptorOffset + statistics.count * descriptorByteCount))
        var bytes: [UInt8] = []
        append(header, to: &bytes)
        append(name: identifier, to: &bytes)
        for (index, statistic) in statistics.enumerated() {
            var description = kvm_stats_desc()
            description.flags = statistic.flags
            description.size = 1
            description.offset = UInt32(index * MemoryLayout<UInt64>.size)
            append(description, to: &bytes)
            append(name: statistic.name, to: &bytes)
        }
        for statistic in statistics { append(statistic.value, to: &bytes) }
        return bytes
    }

    private func append<T>(_ value: T, to bytes: inout [UInt8]) {
        withUnsafeBytes(of: value) { bytes.append(contentsOf: $0) }
    }

    private func append(name: String, to bytes: inout [UInt8]) {
        let characters = Array(name.utf8.prefix(Self.nameByteCount - 1))
        bytes += characters + [UInt8](repeating: 0, count: Self.nameByteCount - characters.count)
    }
}
