import SystemPackage

/// Assembles the default guest from Debian's packages, which are downloaded and unpacked but not installed.
public struct GuestBuilder {
    private let flavour: GuestFlavour
    private let report: (String) -> Void

    /// - Parameter report: called with each step that may take more than a moment.
    public init(flavour: GuestFlavour, report: @escaping (String) -> Void) {
        self.flavour = flavour
        self.report = report
    }

    /// Downloads the packages into `scratch`, an empty directory, and makes the guest's files from them.
    ///
    /// - Throws: ``GuestBuildError`` if a tool or the archive fails.
    public func build(in scratch: FilePath) throws(GuestBuildError) -> GuestFiles {
        report("looking up \(flavour.metapackage)")
        let kernelPackage = try resolveKernelPackage()
        let kernelArchive = try download(kernelPackage, in: scratch)
        let busyboxArchive = try download("busybox-static", in: scratch)

        report("unpacking the kernel")
        let kernel = try unpack(kernelArchive, in: scratch, directory: "kernel", wanted: "./boot/vmlinuz-*")
        let names = FileContents.names(in: kernel.appending("boot")).filter { $0.hasPrefix("vmlinuz-") }
        guard names.count == 1 else {
            throw GuestBuildError("package \(kernelPackage) holds \(names.count) kernels (/boot/vmlinuz-*), expected 1")
        }
        report("making the initramfs")
        let busybox = try unpack(busyboxArchive, in: scratch, directory: "busybox", wanted: "./bin/busybox")
        do {
            return GuestFiles(
                kernel: try FileContents.read(kernel.appending("boot").appending(names[0])),
                initramfs: try Self.makeInitramfs(busybox: busybox.appending("bin/busybox")),
                manifest: try manifestLine(kernelArchive) + manifestLine(busyboxArchive))
        } catch let error as GuestBuildError {
            throw error
        } catch {
            throw GuestBuildError("cannot read an unpacked package in \(scratch): \(error)")
        }
    }

    /// The package with the current kernel: what the flavour's metapackage depends on.
    private func resolveKernelPackage() throws(GuestBuildError) -> String {
        let listing = try Subprocess.run(
            ["apt-cache", "depends", "--important", flavour.metapackage], output: .captured)
        guard let name = Self.kernelPackage(inDependencies: listing) else {
            throw GuestBuildError(
                "apt knows no package '\(flavour.metapackage)'; run 'apt-get update' as root, then try again")
        }
        return name
    }

    /// The kernel package named in the output of `apt-cache depends`; nil if there is none.
    package static func kernelPackage(inDependencies listing: String) -> String? {
        for line in listing.split(separator: "\n") {
            let words = line.split(separator: " ")
            if words.count == 2, words[0].hasSuffix("Depends:"), words[1].hasPrefix("linux-image-") {
                return String(words[1])
            }
        }
        return nil
    }

    /// Downloads the current version of `package` and returns the path of the file.
    private func download(_ package: String, in scratch: FilePath) throws(GuestBuildError) -> FilePath {
        report("downloading \(package)")
        // apt as root would hand the download to an unprivileged user that cannot write to our directory.
        try Subprocess.run(
            ["apt-get", "--option", "APT::Sandbox::User=root", "download", package], in: scratch, output: .progress)
        let names = FileContents.names(in: scratch).filter { $0.hasPrefix(package + "_") && $0.hasSuffix(".deb") }
        guard names.count == 1 else {
            throw GuestBuildError("'apt-get download \(package)' left \(names.count) packages, expected 1")
        }
        return scratch.appending(names[0])
    }

    /// Unpacks the files that match the pattern `wanted` and returns the directory they are in.
    private func unpack(
        _ archive: FilePath, in scratch: FilePath, directory: String, wanted: String
    ) throws(GuestBuildError) -> FilePath {
        let destination = scratch.appending(directory)
        // A kernel package is mostly modules: unpacking one file of it takes a fraction of the time and space.
        let script = """
            set -e; mkdir "$2"; dpkg-deb --fsys-tarfile "$1" >"$2.tar"
            tar --extract --file="$2.tar" --directory="$2" --no-same-owner --wildcards "$3"; rm "$2.tar"
            """
        try Subprocess.run(
            ["sh", "-c", script, "unpack", archive.string, destination.string, wanted], output: .progress)
        return destination
    }

    private func manifestLine(_ archive: FilePath) throws(GuestBuildError) -> String {
        let format = "--showformat=${Package} ${Version}\\n"
        return try Subprocess.run(["dpkg-deb", "--show", format, archive.string], output: .captured) + "\n"
    }

    private static func makeInitramfs(busybox: FilePath) throws -> [UInt8] {
        var archive = InitramfsArchive()
        for directory in ["dev", "proc", "sys", "tmp", "root", "etc"] { archive.addDirectory(directory) }
        // The kernel opens it for the first process before anything is mounted.
        archive.addCharacterDevice("dev/console", permissions: 0o600, major: 5, minor: 1)
        archive.addFile("bin/busybox", permissions: 0o755, contents: try FileContents.read(busybox))
        let applets = try Subprocess.run([busybox.string, "--list-full"], output: .captured)
        for applet in applets.split(separator: "\n") where applet != "bin/busybox" {
            archive.addSymbolicLink(String(applet), to: "/bin/busybox")
        }
        archive.addFile("init", permissions: 0o755, contents: Array(InitScript.text.utf8))
        archive.finish()
        return archive.bytes
    }
}
