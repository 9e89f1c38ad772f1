// swift-tools-version: 6.1
import PackageDescription

// The benchmarks of the core's structures, against the C libraries that are their measure. `make bench-core` runs them.

let package = Package(
    name: "martlet-bench-core",
    dependencies: [.package(name: "martlet", path: "../..")],
    targets: [
        .target(
            name: "CReference", cSettings: [.unsafeFlags(["-O2"])],
            linkerSettings: [.linkedLibrary("urcu-qsbr"), .linkedLibrary("urcu-memb"), .linkedLibrary("urcu-mb")]),
        .executableTarget(
            name: "bench-core",
            dependencies: [
                "CReference", .product(name: "Core", package: "martlet"), .product(name: "KVM", package: "martlet"),
                .product(name: "MMU", package: "martlet")
            ],
            swiftSettings: [.swiftLanguageMode(.v6), .unsafeFlags(["-enforce-exclusivity=unchecked"])])
    ]
)
