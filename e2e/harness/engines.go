package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The Docker Engines that the tests know by name. EngineDebian is the dockerd on PATH, which `make test` installs; the others
// are built out of Go modules at their first use, which takes minutes, and kept in the cache folder.
const (
	EngineDebian = "20.10"
	Engine28     = "28"
	Engine29     = "29"
)

// engineVariable is the environment variable that names the engine of the tests: one of the above, the path of a dockerd, or
// EngineNative.
const engineVariable = "E2E_ENGINE"

// builtEngine is a dockerd made of a module of e2e/tools.
type builtEngine struct {
	// module is the folder, version what dockerd is to say that it is: modules do not know their releases.
	module, version string
	// pkg is the command's package, versionVariable the one that the linker sets.
	pkg, versionVariable string
	// ownRunc says that Debian's runc is too old for it.
	ownRunc bool
}

// builtEngines have the versions that the go.mod files name. v2.0.0-beta.24 of moby is what Docker 29.8 is made of.
var builtEngines = map[string]builtEngine{
	Engine28: {
		module: "docker28", version: "28.5.2",
		pkg: "github.com/docker/docker/cmd/dockerd", versionVariable: "github.com/docker/docker/dockerversion.Version",
	},
	Engine29: {
		module: "docker29", version: "29.8.0", ownRunc: true,
		pkg: "github.com/moby/moby/v2/cmd/dockerd", versionVariable: "github.com/moby/moby/v2/dockerversion.Version",
	},
}

// DockerEngine are the options of an engine by its name, or by the absolute path of a dockerd; "" is EngineDebian.
func DockerEngine(t T, name string) DockerOptions {
	t.Helper()
	if name == "" || name == EngineDebian || name == EngineBoth || filepath.IsAbs(name) {
		return DockerOptions{Binary: dockerdOnHost(name)}
	}
	built, known := builtEngines[name]
	if !known {
		t.Fatalf("Docker Engine %q: it is %s, %s, %s or the absolute path of a dockerd", name, EngineDebian, Engine28, Engine29)
	}
	options := DockerOptions{Binary: built.build(t)}
	if built.ownRunc {
		options.PathPrefix = filepath.Dir(newRunc(t))
	}
	return options
}

// EngineBuilt says whether an engine can be had without the minutes of building it first.
func EngineBuilt(name string) bool {
	built, known := builtEngines[name]
	if !known {
		return true
	}
	_, err := os.Stat(filepath.Join(cacheDir(), built.module, filepath.Base(built.pkg)))
	return err == nil
}

// dockerdOnHost is what to start for an engine that is not built.
func dockerdOnHost(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return "dockerd"
}

// missingEngine is why the engine of the tests cannot be had, "" where it can or DockerEngine says what is wrong.
func missingEngine() string {
	name := os.Getenv(engineVariable)
	if name != "" && name != EngineDebian && name != EngineBoth { // also EngineNative
		return ""
	}
	if _, err := exec.LookPath(dockerdOnHost(name)); err != nil {
		return "end-to-end tests need dockerd on PATH: run `make test`, which installs it"
	}
	return ""
}

func (e builtEngine) build(t T) string {
	t.Helper()
	return buildTool(t, e.module, e.pkg, "-ldflags=-s -w -X "+e.versionVariable+"="+e.version)
}

// newRunc is a runc that speaks the runtime specification of Docker 29.
func newRunc(t T) string {
	t.Helper()
	return buildTool(t, "runc", "github.com/opencontainers/runc", "-tags=seccomp", "-ldflags=-s -w")
}

// Containerd is a current containerd, and the folders with its shim and its runc that go before PATH.
func Containerd(t T) (binary, pathPrefix string) {
	t.Helper()
	const commands = "github.com/containerd/containerd/v2/cmd/"
	version := "-ldflags=-s -w -X github.com/containerd/containerd/v2/version.Version=2.4.2"
	binary = buildTool(t, "containerd", commands+"containerd", version)
	shim := buildTool(t, "containerd", commands+"containerd-shim-runc-v2", version)
	return binary, filepath.Dir(shim) + ":" + filepath.Dir(newRunc(t))
}

// buildTool builds a command of a module of e2e/tools into the cache folder's folder of that name, unless this process did
// already, and returns its path. Tests may ask from within their network namespace: the modules are fetched in the host's.
func buildTool(t T, module, pkg string, args ...string) string {
	t.Helper()
	buildsMu.Lock()
	defer buildsMu.Unlock()
	target := filepath.Join(cacheDir(), module, filepath.Base(pkg))
	if builds[target] {
		return target
	}
	args = append([]string{"build", "-trimpath", "-buildvcs=false", "-o", target}, args...)
	err := onHostNetwork(func() error { return goTool(filepath.Join(root(), "e2e", "tools", module), nil, append(args, pkg)...) })
	if err != nil {
		t.Fatalf("building %s: %v", pkg, err)
	}
	builds[target] = true
	return target
}

// EngineName is the engine of the tests in words: "native", or "Docker" and its version, or both.
func EngineName(t T) string {
	t.Helper()
	if Native() {
		return EngineNative
	}
	out := Run(t, DockerEngine(t, os.Getenv(engineVariable)).Binary, "--version") // Docker version 20.10.24+dfsg1, build 297e128
	version, _, _ := strings.Cut(strings.TrimPrefix(out, "Docker version "), ",")
	if os.Getenv(engineVariable) == EngineBoth {
		return "Docker " + version + " and native"
	}
	return "Docker " + version
}
