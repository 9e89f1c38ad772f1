// swift-tools-version: 6.1
import PackageDescription

let package = Package(
    name: "martlet-benchmarks",
    targets: [
        .executableTarget(name: "bench", swiftSettings: [.swiftLanguageMode(.v6)])
    ]
)
