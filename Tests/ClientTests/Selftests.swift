import Glibc
import TestSupport
import Testing

/// The kernel's own tests of KVM, built from Debian's source package.
///
/// > Source: tools/testing/selftests/kvm of Linux 6.1.
enum Selftests {
    private static let archive = "/usr/src/linux-source-6.1.tar.xz"

    static var isAvailable: Bool {
        MartletCommand.path != nil && access(archive, R_OK) == 0 && Client.hasProgram("make")
            && Client.hasProgram("gcc") && Client.hasProgram("xz")
    }

    static let missing: Comment = "needs the martlet command, make, gcc and the package linux-source-6.1"

    /// Where they are built; nil if that failed.
    static let folder: String? = {
        chmod(scratch.path, 0o755)
        let path = "\(scratch.path)/tools/testing/selftests/kvm"
        let script = """
            set -e
            tar --directory '\(scratch.path)' --strip-components=1 --extract --file \(archive) \
                linux-source-6.1/tools linux-source-6.1/scripts/subarch.include
            # A make that runs these tests must not tell this one that it is not the first.
            unset MAKELEVEL MAKEFLAGS MFLAGS MAKEOVERRIDES
            make --directory '\(path)' --jobs=2 KHDR_INCLUDES= \
                EXTRA_CFLAGS='-DTEST_ASSERT_EQ=ASSERT_EQ -include linux/stddef.h'
            """
        guard let build = try? ChildProcess(["/bin/sh", "-c", script]), build.wait(patienceSeconds: 600) == .exited(0)
        else { return nil }
        return path
    }()

    private static let scratch = ScratchDirectory()

    /// The programs that were built, by their paths below ``folder``.
    static func programs(in folder: String) -> [String] {
        [".", "x86_64"].flatMap { directory -> [String] in
            guard let stream = opendir("\(folder)/\(directory)") else { return [] }
            defer { closedir(stream) }
            var names: [String] = []
            while let entry = readdir(stream) {
                let name = withUnsafeBytes(of: entry.pointee.d_name) {
                    String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
                }
                guard !name.contains("."), entry.pointee.d_type == UInt8(DT_REG), name != "Makefile", name != "config",
                    name != "settings", access("\(folder)/\(directory)/\(name)", X_OK) == 0
                else { continue }
                names.append(directory == "." ? name : "\(directory)/\(name)")
            }
            return names.sorted()
        }
    }
}

/// What the kernel's tests say of Martlet.
@Suite(.serialized, .enabled(if: Selftests.isAvailable, Selftests.missing))
struct SelftestTests {
    /// Those that must pass, with their arguments; the others must pass or skip themselves.
    static let required: [[String]] = [
        ["set_memory_region_test"], ["memslot_modification_stress_test"], ["memslot_perf_test", "-l", "1"],
        ["kvm_create_max_vcpus"], ["kvm_page_table_test"], ["demand_paging_test"], ["dirty_log_test"],
        ["dirty_log_perf_test"], ["max_guest_memory_test", "-m", "2", "-s", "1", "-c", "2"], ["rseq_test"],
        ["hardware_disable_test"], ["steal_time"], ["kvm_binary_stats_test"], ["system_counter_offset_test"],
        ["x86_64/set_boot_cpu_id"], ["x86_64/max_vcpuid_cap_test"], ["x86_64/get_msr_index_features"],
        ["x86_64/sync_regs_test"], ["x86_64/cpuid_test"], ["x86_64/cr4_cpuid_sync_test"], ["x86_64/platform_info_test"],
        ["x86_64/userspace_io_test"], ["x86_64/userspace_msr_exit_test"], ["x86_64/emulator_error_test"],
        ["x86_64/state_test"],
        ["x86_64/set_sregs_test"], ["x86_64/debug_regs"], ["x86_64/kvm_clock_test"], ["x86_64/kvm_pv_test"],
        ["x86_64/fix_hypercall_test"], ["x86_64/monitor_mwait_test"], ["x86_64/tsc_msrs_test"],
        ["x86_64/xapic_ipi_test"], ["x86_64/xapic_state_test"], ["x86_64/smm_test"]
    ]

    /// These need Hyper-V's interfaces, and do not ask whether they are there.
    static let needHyperV: Set<String> = ["x86_64/hyperv_clock", "x86_64/hyperv_features"]

    /// What a test ends with that lacks something.
    private static let skipped: Int32 = 4

    private func run(_ arguments: [String], asRoot: Bool = false) throws -> ChildProcess {
        let folder = try #require(Selftests.folder, "the tests could not be built")
        return try Client.start(["./" + arguments[0]] + arguments.dropFirst(), directory: folder, asRoot: asRoot)
    }

    @Test(arguments: required)
    func passes(test: [String]) throws {
        let child = try run(test)
        #expect(child.wait(patienceSeconds: 900) == .exited(0), Client.account(child))
    }

    /// Pages that are given when the guest asks for them; needs root.
    @Test(.enabled(if: geteuid() == 0, "needs root, for userfaultfd"), arguments: ["MISSING", "MINOR"])
    func demandPaging(mode: String) throws {
        // Minor faults need memory that is shared.
        let source = mode == "MINOR" ? ["-s", "shmem"] : []
        let child = try run(["demand_paging_test", "-u", mode] + source, asRoot: true)
        #expect(child.wait(patienceSeconds: 300) == .exited(0), Client.account(child))
    }

    @Test func othersPassOrSkip() throws {
        let folder = try #require(Selftests.folder, "the tests could not be built")
        let known = Set(Self.required.map { $0[0] }).union(Self.needHyperV)
        let others = Selftests.programs(in: folder).filter { !known.contains($0) }
        #expect(others.count > 20)
        for name in others {
            let child = try run([name])
            let end = child.wait(patienceSeconds: 300)
            #expect(end == .exited(0) || end == .exited(Self.skipped), "\(name): \(end)\n\(Client.account(child))")
        }
    }
}
