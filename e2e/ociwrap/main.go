// Command ociwrap is an OCI runtime for test hosts whose root lacks CAP_SYS_RESOURCE (nested machines): it makes a
// bundle or process description that such a host cannot fulfil one that it can, then becomes runc.
//
// Two things are changed, on create, run and exec: a score of the OOM killer below this process's own becomes its own,
// and CAP_SYS_RESOURCE leaves every capability set. It is test set-up and no part of the product; the tests do not use
// it where the capability is there. The real runtime is $OCIWRAP_RUNTIME, or else runc on PATH.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "ociwrap:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if file, inProcess := description(args[1:]); file != "" {
		if err := rewrite(file, inProcess); err != nil {
			return fmt.Errorf("adapting %s: %w", file, err)
		}
	}
	runtime := os.Getenv("OCIWRAP_RUNTIME")
	if runtime == "" {
		found, err := exec.LookPath("runc")
		if err != nil {
			return fmt.Errorf("looking for the real runtime: %w", err)
		}
		runtime = found
	}
	args[0] = runtime
	return fmt.Errorf("running %s: %w", runtime, syscall.Exec(runtime, args, os.Environ()))
}

// description finds the file that describes the process: the bundle's config.json of create and run, the process file of
// exec. inProcess says that the process is a member of the file and not the file itself.
func description(args []string) (file string, inProcess bool) {
	command := slices.IndexFunc(args, func(arg string) bool { return arg == "create" || arg == "run" || arg == "exec" })
	if command < 0 {
		return "", false
	}
	options := args[command+1:]
	if args[command] == "exec" {
		return option(options, "process", "p"), false
	}
	bundle := option(options, "bundle", "b")
	if bundle == "" {
		bundle = "."
	}
	return filepath.Join(bundle, "config.json"), true
}

// option returns the value of --long VALUE, --long=VALUE, -short VALUE or "".
func option(args []string, long, short string) string {
	for i, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		if name != "--"+long && name != "-"+long && name != "-"+short {
			continue
		}
		if joined {
			return value
		}
		if i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

func rewrite(file string, inProcess bool) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber() // ids and limits above 2^53 must come out as they went in
	var document map[string]any
	if err := decoder.Decode(&document); err != nil {
		return err
	}
	process := document
	if inProcess {
		process, _ = document["process"].(map[string]any)
	}
	if process == nil {
		return nil
	}
	clampScore(process)
	dropCapability(process, "CAP_SYS_RESOURCE")
	if data, err = json.Marshal(document); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}

func clampScore(process map[string]any) {
	wanted, set := process["oomScoreAdj"].(json.Number)
	if !set {
		return
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return
	}
	if score, err := strconv.Atoi(wanted.String()); err == nil && score < own {
		process["oomScoreAdj"] = own
	}
}

func dropCapability(process map[string]any, name string) {
	sets, _ := process["capabilities"].(map[string]any)
	for set, value := range sets {
		if list, ok := value.([]any); ok {
			sets[set] = slices.DeleteFunc(list, func(c any) bool { return c == name })
		}
	}
}
