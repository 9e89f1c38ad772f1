/// The first process of the default guest.
///
/// The kernel command line chooses what it does: `martlet.batch` prints `uname -a` and powers off;
/// `martlet.run=COMMAND` (with `"…"` around it if it has blanks) runs COMMAND with the shell, prints
/// `martlet.status=N` and powers off; otherwise there is an interactive shell on the console, and leaving it powers off.
enum InitScript {
    static let text = """
        #!/bin/sh
        # The first process of Martlet's default guest.
        export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=linux
        mount -t proc proc /proc
        mount -t sysfs sysfs /sys
        mount -t devtmpfs devtmpfs /dev
        mkdir -p /dev/pts /dev/shm
        mount -t devpts devpts /dev/pts
        mount -t tmpfs tmpfs /dev/shm
        mount -t tmpfs tmpfs /tmp
        hostname martlet
        ip link set lo up 2>/dev/null

        command="$(sed -n -e 's/.*martlet\\.run="\\([^"]*\\)".*/\\1/p' -e t \\
            -e 's/.*martlet\\.run=\\([^ ]*\\).*/\\1/p' /proc/cmdline)"
        if grep -q -w 'martlet\\.batch' /proc/cmdline; then
            uname -a
        elif [ -n "$command" ]; then
            sh -c "$command"
            echo "martlet.status=$?"
        else
            # Without a size the shell asks the terminal for it with an escape sequence.
            stty rows 24 cols 80 </dev/console
            cd /root
            setsid cttyhack sh -l
        fi
        poweroff -f

        """
}
