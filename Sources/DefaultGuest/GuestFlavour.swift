/// Which of Debian's kernels the default guest runs.
public enum GuestFlavour: String, CaseIterable, Sendable {
    /// `linux-image-cloud-amd64`: drivers for virtual machines only.
    case cloud
    /// `linux-image-amd64`: what a Debian installation runs on real machines.
    case standard

    /// The metapackage that depends on the current kernel of this flavour.
    public var metapackage: String {
        switch self {
        case .cloud: "linux-image-cloud-amd64"
        case .standard: "linux-image-amd64"
        }
    }
}
