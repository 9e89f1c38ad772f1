import DefaultGuest
import Glibc
import SystemPackage
import TestSupport
import Testing

/// A disk with the root file system of Debian 12, made of packages from where the machine's apt gets its own.
///
/// It is kept in a directory of the cache of guests, with the recipe that it was made by. Files are written beside their
/// place and renamed into it, the recipe last, so that neither an interrupted build nor two at once leave half a disk.
enum DebianDisk {
    static let password = "martlet"

    static var hasTools: Bool {
        ["mmdebstrap", "apt-get", "flock"].allSatisfy(Client.hasProgram) && BootDisk.mkfs != nil
    }

    static let missingTools: Comment = "needs the packages mmdebstrap, apt, util-linux and e2fsprogs"

    static let missing: Comment =
        """
        needs apt's lists of Debian 12 (apt-get update), a network, and either root with mounts or user namespaces \
        (package uidmap); mmdebstrap's own words are above
        """

    /// The path of the disk in the cache, made if it is missing; nil if that failed, and standard error has the reason.
    static let image: String? = {
        guard hasTools, let cache = try? GuestCache.standard().directory else { return nil }
        let place = cache.appending("debian-12")
        let image = place.appending("disk.img").string
        let (saved, script) = (place.appending("recipe").string, recipe(place: place.string))
        if ScratchDirectory.contents(of: saved) == Array(script.utf8) { return image }
        guard let tools = try? ChildProcess(["/bin/bash", "-c", script, "debian-disk"]) else { return nil }
        guard tools.wait(patienceSeconds: 900) == .exited(0) else {
            let reason = "martlet: no disk with Debian 12:\n\(tools.errorText.suffix(2000))\n"
            _ = try? FileDescriptor.standardError.writeAll(reason.utf8)
            return nil
        }
        return image
    }()

    /// Makes the disk, and saves itself beside it.
    ///
    /// The file system is made inside mmdebstrap, because only there files have their owners if there are user
    /// namespaces instead of root. What is mounted in it for the packages' sake is not seen through a second mount.
    private static func recipe(place: String) -> String {
        """
        set -e -o pipefail
        place='\(place)'
        mkdir -p "$place"
        exec 9>"$place/../.lock"
        flock 9
        if [[ "$BASH_EXECUTION_STRING" == "$(cat "$place/recipe" 2>/dev/null)" ]]; then exit 0; fi
        # Under the lock, what is there is of builds that were killed.
        rm -rf "$place"/../.build-*
        scratch="$(mktemp -d "$place/../.build-XXXXXX")"
        trap 'rm -rf "$scratch"' EXIT
        apt-get indextargets --format '$(CODENAME) deb $(REPO_URI) $(RELEASE) $(COMPONENT)' \\
            'Created-By: Packages' 'Origin: Debian' | sed -n 's/^bookworm[^ ]* deb/deb/p' >"$scratch/sources.list"
        if [[ ! -s "$scratch/sources.list" ]]; then
            echo "apt's lists are not of Debian 12 (bookworm)" >&2
            exit 1
        fi
        options=(--aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io)
        for folder in doc info locale man; do options+=(--dpkgopt="path-exclude=/usr/share/$folder/*"); done
        # What mmdebstrap mounts goes with its namespace, and its files with the rest, even if it is killed. As an ordinary
        # user it makes a namespace itself, whose users may not come into the cache.
        isolated=()
        if [[ $EUID -eq 0 ]]; then isolated=(env TMPDIR="$scratch" unshare --mount); fi
        "${isolated[@]}" mmdebstrap --variant=apt --include=systemd-sysv,udev,login,dbus "${options[@]}" --skip=cleanup \\
            --customize-hook='echo root:\(password) | chroot "$1" chpasswd' \\
            --customize-hook='echo debian >"$1/etc/hostname"' \\
            --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*' \\
            --customize-hook='mkdir "$1.root" && mount --bind "$1" "$1.root"' \\
            --customize-hook='\(BootDisk.mkfs ?? "mke2fs") -q -t ext4 -m 0 -d "$1.root" "$1.img" 320M' \\
            --customize-hook='umount "$1.root" && rmdir "$1.root" && mv "$1.img" "$1/disk.img"' \\
            --customize-hook="download /disk.img $scratch/whole.img" bookworm /dev/null "$scratch/sources.list" >&2
        cp --sparse=always "$scratch/whole.img" "$scratch/disk.img"
        printf %s "$BASH_EXECUTION_STRING" >"$scratch/recipe"
        sync "$scratch/disk.img" "$scratch/recipe"
        rm -f "$place/recipe"
        mv "$scratch/disk.img" "$place/disk.img"
        mv "$scratch/recipe" "$place/recipe"
        """
    }

    /// Copies the disk, for a guest that writes to it.
    /// - Returns: the path of the copy in `directory`.
    static func copy(to directory: ScratchDirectory) throws -> String {
        let disk = "\(directory.path)/debian.img"
        let tool = try ChildProcess(["/bin/cp", "--sparse=always", try #require(image), disk])
        try #require(tool.wait() == .exited(0), Client.account(tool))
        chmod(disk, 0o666)
        return disk
    }
}
