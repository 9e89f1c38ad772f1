import ArgumentParser
import DefaultGuest

/// `martlet guest`: the guest that runs when no kernel is given.
struct GuestCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "guest",
        abstract: "Build or list the default guests.",
        discussion: """
            A default guest is Debian's kernel and a busybox shell, made from packages that are downloaded and unpacked \
            but not installed. Guests are kept in $XDG_CACHE_HOME/martlet/guests (~/.cache/martlet/guests).
            """,
        subcommands: [Build.self, List.self])

    struct Build: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Assemble a default guest, unless it is there.")

        @Option(help: "Kernel of the guest: cloud (linux-image-cloud-amd64) or standard (linux-image-amd64).")
        var flavour = GuestFlavour.cloud

        @Flag(help: "Download the current packages even if the guest is there.")
        var update = false

        func run() throws {
            do {
                let builder = GuestBuilder(flavour: flavour, report: Message.progress)
                let guest = try GuestCache.standard().guest(
                    flavour, rebuilding: update, report: Message.progress, build: builder.build(in:))
                Message.progress("guest '\(flavour.rawValue)' is ready: \(guest.kernel)")
            } catch {
                throw CommandFailure.hostFailure(
                    "cannot build the '\(flavour.rawValue)' guest: \(error); a kernel of your own runs with "
                        + "'martlet run --kernel FILE'")
            }
        }
    }

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Print each default guest, what it was made from, and where it is.")

        func run() throws {
            let cache = try GuestCache.standard()
            var text = ""
            for flavour in GuestFlavour.allCases {
                guard let guest = cache.guest(flavour) else {
                    text += "\(flavour.rawValue): not built (martlet guest build --flavour \(flavour.rawValue))\n"
                    continue
                }
                text += "\(flavour.rawValue):\n"
                for line in guest.manifest.split(separator: "\n") { text += "    \(line)\n" }
                text += "    kernel \(guest.kernel)\n    initramfs \(guest.initramfs)\n"
            }
            let status = StandardOutput.write(text)
            if status != .success { throw ExitCode(status.rawValue) }
        }
    }
}

extension GuestFlavour: ExpressibleByArgument {}
