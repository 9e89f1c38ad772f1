// swift-tools-version: 6.1
import PackageDescription

/// Settings of every Swift target.
let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableExperimentalFeature("Lifetimes")
]

/// Settings of targets whose code runs between translated blocks: signal handlers enter it, so it must not
/// call the exclusivity runtime.
let execution: [SwiftSetting] = strict + [.unsafeFlags(["-enforce-exclusivity=unchecked"])]

/// The command carries Swift's runtime: once installed it needs no toolchain, and it starts with less memory. The libraries
/// are those that the argument parser's use of Foundation needs.
let staticRuntime = ["-static-stdlib", "-l_FoundationCShims", "-l_FoundationCollections"]

/// What clients preload carries Swift's runtime, too, and shows nothing but the functions that it takes over: a client may be
/// written in Swift itself.
let preloadable: [LinkerSetting] = [
    .unsafeFlags([
        "-static-stdlib", "-Xlinker", "--gc-sections", "-Xlinker", "-z", "-Xlinker", "nodelete", "-Xlinker",
        "--version-script=\(Context.packageDirectory)/Sources/CPreload/exports.map"
    ])
]

let package = Package(
    name: "martlet",
    products: [
        .executable(name: "martlet", targets: ["martlet"]),
        .library(name: "martlet-kvm", type: .dynamic, targets: ["KVMPreload"]),
        .library(name: "Core", targets: ["RCU", "VCPUTables", "VCPUTableDesigns", "Host"]),
        .library(name: "KVM", targets: ["UserspaceKVM", "KVMInterface", "GuestMemory", "Addressing", "Host", "CHost"]),
        .library(name: "MMU", targets: ["MMU", "X86", "GuestMemory", "RCU", "Addressing"]),
        .library(name: "Machine", targets: ["Machine", "Addressing"]),
        .library(name: "Translator", targets: ["Translator", "X86", "GuestMemory", "RCU", "Addressing"])
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
        .package(url: "https://github.com/apple/swift-system", from: "1.4.0")
    ],
    targets: [
        .systemLibrary(name: "CZydis", providers: [.apt(["libzydis-dev"])]),
        .systemLibrary(name: "CLZ4", providers: [.apt(["liblz4-dev"])]),
        .systemLibrary(name: "CLZMA", providers: [.apt(["liblzma-dev"])]),
        .systemLibrary(name: "CZlib", providers: [.apt(["zlib1g-dev"])]),
        .systemLibrary(name: "CZstd", providers: [.apt(["libzstd-dev"])]),
        .target(name: "CHost", cSettings: [.define("_GNU_SOURCE")]),
        .target(name: "Addressing", swiftSettings: strict),
        .target(
            name: "Host",
            dependencies: ["CHost", .product(name: "SystemPackage", package: "swift-system")],
            swiftSettings: execution),
        .target(name: "RCU", dependencies: ["Host"], swiftSettings: execution),
        .target(
            name: "AddressSpace",
            dependencies: ["Addressing", "RCU", .product(name: "SystemPackage", package: "swift-system")],
            swiftSettings: strict),
        .target(
            name: "VCPUTables",
            dependencies: ["Host", .product(name: "SystemPackage", package: "swift-system")],
            swiftSettings: execution),
        .target(
            name: "VCPUTableDesigns",
            dependencies: ["VCPUTables", "RCU", "Host", .product(name: "SystemPackage", package: "swift-system")],
            swiftSettings: execution),
        .target(name: "X86", dependencies: ["Addressing", "CZydis"], swiftSettings: execution),
        .target(name: "GuestMemory", dependencies: ["RCU", "Addressing", "Host"], swiftSettings: execution),
        .target(name: "MMU", dependencies: ["X86", "GuestMemory", "RCU", "Host"], swiftSettings: execution),
        .target(
            name: "Interrupts",
            dependencies: ["RCU", "Addressing", "Host", .product(name: "SystemPackage", package: "swift-system")],
            swiftSettings: execution),
        .target(name: "Translator", dependencies: ["X86", "MMU", "Host", "CZydis"], swiftSettings: execution),
        .target(
            name: "KVMInterface",
            dependencies: ["CHost", "Addressing", "Host", .product(name: "SystemPackage", package: "swift-system")],
            swiftSettings: strict),
        .target(
            name: "UserspaceKVM",
            dependencies: ["KVMInterface", "Translator", "Interrupts", "MMU", "GuestMemory", "RCU", "VCPUTables"],
            swiftSettings: execution),
        .target(
            name: "CPreload", dependencies: ["CHost"], exclude: ["exports.map"], cSettings: [.define("_GNU_SOURCE")]),
        .target(
            name: "KVMPreload",
            dependencies: ["CPreload", "UserspaceKVM", "KVMInterface", "Translator", "X86", "RCU", "Host", "CHost"],
            swiftSettings: execution + [.unsafeFlags(["-static-stdlib"])], linkerSettings: preloadable),
        .target(
            name: "KernelKVM",
            dependencies: [
                "KVMInterface", "Host", "CHost", .product(name: "SystemPackage", package: "swift-system")
            ],
            swiftSettings: strict),
        .target(name: "Devices", dependencies: ["Addressing", "Host"], swiftSettings: strict),
        .target(
            name: "Machine",
            dependencies: [
                "AddressSpace", "Devices", "KVMInterface", "Addressing", "Host", "CHost", "CLZ4", "CLZMA", "CZlib",
                "CZstd", .product(name: "SystemPackage", package: "swift-system")
            ],
            swiftSettings: strict),
        .target(
            name: "DefaultGuest",
            dependencies: [.product(name: "SystemPackage", package: "swift-system")],
            swiftSettings: strict),
        .executableTarget(
            name: "martlet",
            dependencies: [
                "Machine", "UserspaceKVM", "KernelKVM", "DefaultGuest", "CHost",
                .product(name: "ArgumentParser", package: "swift-argument-parser")
            ],
            swiftSettings: strict, linkerSettings: [.unsafeFlags(staticRuntime)]),
        .target(
            name: "TestSupport",
            dependencies: ["DefaultGuest", .product(name: "SystemPackage", package: "swift-system")],
            path: "Tests/TestSupport", swiftSettings: strict),
        .executableTarget(
            name: "BareGuest",
            dependencies: [
                "UserspaceKVM", "KVMInterface", "Machine", "Host", "Addressing",
                .product(name: "SystemPackage", package: "swift-system")
            ],
            path: "Tests/BareGuest", swiftSettings: strict),
        .testTarget(
            name: "EndToEndTests",
            dependencies: ["TestSupport", "DefaultGuest", "Machine", "KVMInterface", "CHost", "CZstd"],
            swiftSettings: execution),
        .testTarget(
            name: "ClientTests", dependencies: ["TestSupport", "DefaultGuest"],
            exclude: ["Oracle", "Programs", "without-kvm.sh"],
            swiftSettings: strict),
        .testTarget(
            name: "DifferentialTests", dependencies: ["TestSupport"], exclude: ["Guests"], swiftSettings: strict),
        .testTarget(name: "InterruptsTests", dependencies: ["Interrupts", "TestSupport"], swiftSettings: execution),
        .testTarget(
            name: "TranslatorTests",
            dependencies: ["Translator", "MMU", "CHost", "CZydis", "GuestMemory", "RCU", "TestSupport"],
            swiftSettings: execution),
        .testTarget(
            name: "MachineTests",
            dependencies: [
                "Machine", "Addressing", "KVMInterface", "CHost", "Host", "CLZ4", "CLZMA", "CZlib", "CZstd",
                "TestSupport",
                .product(name: "SystemPackage", package: "swift-system")
            ],
            swiftSettings: execution),
        .testTarget(
            name: "MachineMemoryTests",
            dependencies: [
                "Machine", "AddressSpace", "UserspaceKVM", "KVMInterface", "Host", "Addressing", "TestSupport",
                .product(name: "SystemPackage", package: "swift-system")
            ],
            swiftSettings: execution),
        .testTarget(name: "HostTests", dependencies: ["Host", "CHost"], swiftSettings: execution),
        .testTarget(name: "RCUTests", dependencies: ["RCU", "Host", "CHost", "TestSupport"], swiftSettings: execution),
        .testTarget(
            name: "AddressSpaceTests", dependencies: ["AddressSpace", "RCU", "Host", "Addressing", "TestSupport"],
            swiftSettings: execution),
        .testTarget(
            name: "VCPUTablesTests",
            dependencies: ["VCPUTables", "VCPUTableDesigns", "RCU", "Host", "TestSupport"],
            swiftSettings: execution),
        .testTarget(
            name: "GuestMemoryTests", dependencies: ["GuestMemory", "RCU", "Host", "Addressing", "TestSupport"],
            swiftSettings: execution),
        .testTarget(
            name: "MMUTests", dependencies: ["MMU", "X86", "GuestMemory", "RCU", "Host", "Addressing", "TestSupport"],
            swiftSettings: execution),
        .testTarget(name: "DefaultGuestTests", dependencies: ["DefaultGuest", "Host"], swiftSettings: execution),
        .testTarget(
            name: "FuzzTests",
            dependencies: [
                "Machine", "Translator", "X86", "GuestMemory", "RCU", "Addressing", "UserspaceKVM", "KVMInterface",
                "Host", "CHost", "TestSupport", .product(name: "SystemPackage", package: "swift-system")
            ],
            swiftSettings: execution),
        .testTarget(name: "DevicesTests", dependencies: ["Devices"], swiftSettings: execution),
        .testTarget(name: "KVMInterfaceTests", dependencies: ["KVMInterface", "CHost"], swiftSettings: execution),
        .testTarget(
            name: "UserspaceKVMTests", dependencies: ["UserspaceKVM", "KVMInterface", "Host", "CHost", "TestSupport"],
            swiftSettings: execution),
        .testTarget(
            name: "KernelKVMTests",
            dependencies: ["KernelKVM", "UserspaceKVM", "KVMInterface", "Host", "CHost", "TestSupport"],
            swiftSettings: execution)
    ]
)

// Sanitizer builds take the core only (Tools/sanitize.sh): the test targets named here, and what they need.
if let tests = Context.environment["MARTLET_CORE_TESTS"]?.split(separator: " ").map(String.init) {
    var needed = Set(tests)
    while true {
        let found = package.targets.filter { needed.contains($0.name) }.flatMap(\.dependencies).compactMap {
            if case .byNameItem(let name, _) = $0 { name } else { nil }
        }
        if needed.isSuperset(of: found) { break }
        needed.formUnion(found)
    }
    package.targets.removeAll { !needed.contains($0.name) }
    package.products.removeAll()
}
