// swift-tools-version: 6.1
import PackageDescription

// The fuzz targets. `make fuzz` builds them with the instrumentation of libFuzzer and runs them.

let strict: [SwiftSetting] = [.swiftLanguageMode(.v6)]

/// As the package itself: nothing that runs next to translated code calls the exclusivity runtime.
let execution: [SwiftSetting] = strict + [.unsafeFlags(["-enforce-exclusivity=unchecked"])]

/// The compiler's libFuzzer needs the compiler's own linker.
let linker: [LinkerSetting] = [.unsafeFlags(["-use-ld=lld"])]

let package = Package(
    name: "martlet-fuzz",
    dependencies: [
        .package(name: "martlet", path: ".."), .package(url: "https://github.com/apple/swift-system", from: "1.4.0")
    ],
    targets: [
        .target(name: "CFuzzer", path: "CFuzzer", cSettings: [.define("_GNU_SOURCE")]),
        .target(
            name: "LoaderCase", dependencies: [.product(name: "Machine", package: "martlet")],
            path: "LoaderCase", swiftSettings: strict),
        .target(
            name: "TranslatorCase", dependencies: [.product(name: "Translator", package: "martlet")],
            path: "TranslatorCase", swiftSettings: execution),
        .target(
            name: "RequestCase",
            dependencies: [
                .product(name: "KVM", package: "martlet"), .product(name: "SystemPackage", package: "swift-system")
            ],
            path: "RequestCase", swiftSettings: execution),
        .executableTarget(
            name: "FuzzRequests", dependencies: ["CFuzzer", "RequestCase"], path: "FuzzRequests",
            swiftSettings: execution, linkerSettings: linker),
        .executableTarget(
            name: "FuzzLoader", dependencies: ["CFuzzer", "LoaderCase"], path: "FuzzLoader",
            swiftSettings: strict, linkerSettings: linker),
        .executableTarget(
            name: "FuzzTranslator", dependencies: ["CFuzzer", "TranslatorCase"], path: "FuzzTranslator",
            swiftSettings: execution, linkerSettings: linker)
    ]
)
