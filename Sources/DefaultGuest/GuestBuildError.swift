/// Why a guest could not be assembled, as a sentence for the user.
public struct GuestBuildError: Error, Equatable, CustomStringConvertible {
    public let description: String

    public init(_ description: String) { self.description = description }
}
