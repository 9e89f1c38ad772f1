import Glibc
import SystemPackage

/// The directory in which assembled guests are kept, one subdirectory for each flavour.
///
/// A guest counts as built once its manifest is there. Files are written beside their place and renamed into it, the
/// manifest last, so that neither an interrupted build nor two at once leave half a guest.
public struct GuestCache: Sendable {
    public let directory: FilePath

    public init(directory: FilePath) { self.directory = directory }

    /// `$XDG_CACHE_HOME/martlet/guests`, by default `~/.cache/martlet/guests`.
    ///
    /// - Throws: ``GuestBuildError`` if there is no home directory either.
    public static func standard() throws(GuestBuildError) -> Self {
        // The specification of base directories says to ignore relative paths.
        if let value = getenv("XDG_CACHE_HOME"), value[0] == UInt8(ascii: "/") {
            return Self(directory: FilePath(String(cString: value)).appending("martlet/guests"))
        }
        if let value = getenv("HOME"), value[0] == UInt8(ascii: "/") {
            return Self(directory: FilePath(String(cString: value)).appending(".cache/martlet/guests"))
        }
        throw GuestBuildError("neither XDG_CACHE_HOME nor HOME is set; set one to say where guests are kept")
    }

    /// The built guest of `flavour`; nil if there is none.
    public func guest(_ flavour: GuestFlavour) -> DefaultGuest? {
        let place = place(flavour)
        guard let manifest = try? FileContents.read(place.appending(Self.manifestName)) else { return nil }
        return DefaultGuest(
            flavour: flavour, kernel: place.appending(Self.kernelName), initramfs: place.appending(Self.initramfsName),
            manifest: String(decoding: manifest, as: UTF8.self))
    }

    /// The guest of `flavour`, assembled by `build` if it is missing or `always` is set.
    ///
    /// - Parameters:
    ///   - report: called with what is being done.
    ///   - build: writes the guest's files; gets an empty directory, which is removed afterwards.
    /// - Throws: ``GuestBuildError``, after which the cache is as it was.
    public func guest(
        _ flavour: GuestFlavour, rebuilding always: Bool = false, report: (String) -> Void,
        build: (FilePath) throws(GuestBuildError) -> GuestFiles
    ) throws(GuestBuildError) -> DefaultGuest {
        if !always, let guest = guest(flavour) { return guest }
        do {
            try FileContents.createDirectories(directory)
            let lock = directory.appending(".lock")
            try FileLock.hold(lock, onWait: { report("waiting for another build to finish") }) {
                if !always, guest(flavour) != nil { return }
                // Under the lock, what is there is of builds that were killed.
                FileContents.removeTemporaryDirectories(in: directory)
                let scratch = try FileContents.createTemporaryDirectory(in: directory)
                defer { FileContents.removeTree(scratch) }
                try install(try build(scratch), flavour, through: scratch)
            }
        } catch let error as GuestBuildError {
            throw error
        } catch {
            throw GuestBuildError("cannot write to the guest cache \(directory): \(error)")
        }
        guard let guest = guest(flavour) else {
            throw GuestBuildError("cannot read the guest just written to \(place(flavour))")
        }
        return guest
    }

    private func install(_ files: GuestFiles, _ flavour: GuestFlavour, through scratch: FilePath) throws(Errno) {
        let place = place(flavour)
        try FileContents.createDirectories(place)
        let contents = [
            (Self.kernelName, files.kernel), (Self.initramfsName, files.initramfs),
            (Self.manifestName, Array(files.manifest.utf8))
        ]
        for (name, bytes) in contents {
            let new = scratch.appending("new-\(name)")
            try FileContents.write(bytes, to: new)
            guard rename(new.string, place.appending(name).string) == 0 else { throw Errno(rawValue: errno) }
        }
    }

    private func place(_ flavour: GuestFlavour) -> FilePath { directory.appending(flavour.rawValue) }

    private static var kernelName: String { "vmlinuz" }
    private static var initramfsName: String { "initramfs.cpio" }
    private static var manifestName: String { "manifest" }
}

/// What a guest consists of.
public struct GuestFiles: Sendable {
    public var kernel: [UInt8]
    public var initramfs: [UInt8]
    /// Where the two came from: one `name version` line for each package.
    public var manifest: String

    public init(kernel: [UInt8], initramfs: [UInt8], manifest: String) {
        self.kernel = kernel
        self.initramfs = initramfs
        self.manifest = manifest
    }
}

/// A guest in the cache, ready to boot.
public struct DefaultGuest: Equatable, Sendable {
    public let flavour: GuestFlavour
    public let kernel: FilePath
    public let initramfs: FilePath
    /// See ``GuestFiles/manifest``.
    public let manifest: String
}
