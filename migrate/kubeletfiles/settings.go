package kubeletfiles

import (
	"fmt"
	"slices"
	"strings"
)

// Flag is one flag of the kubelet's command line.
type Flag struct {
	Name  string `json:"name"` // without dashes
	Value string `json:"value"`
	// File holds it, in Variable or, where that is "", in ExecStart.
	File     string `json:"file"`
	Variable string `json:"variable,omitempty"`

	// first and words are its place among the arguments.
	first, words int
}

// Flags are all flags in order, as pflag reads them: --name=value, --name value, or --name alone.
func (f *Files) Flags() []Flag {
	var flags []Flag
	for i := 0; i < len(f.args); i++ {
		arg := f.args[i]
		if !strings.HasPrefix(arg.Text, "-") {
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimLeft(arg.Text, "-"), "=")
		flag := Flag{Name: name, Value: value, File: arg.File, Variable: arg.Variable, first: i, words: 1}
		if !hasValue && i+1 < len(f.args) && !strings.HasPrefix(f.args[i+1].Text, "-") {
			flag.Value, flag.words = f.args[i+1].Text, 2
			i++
		}
		flags = append(flags, flag)
	}
	return flags
}

// ParseArguments reads the flags of a running kubelet's command line, without the program.
func ParseArguments(args []string) []Flag {
	f := &Files{}
	for _, arg := range args {
		f.args = append(f.args, Argument{Text: arg})
	}
	return f.Flags()
}

// Flag finds a flag; the last one counts.
func (f *Files) Flag(name string) (Flag, bool) {
	flags := f.Flags()
	for _, flag := range slices.Backward(flags) {
		if flag.Name == name {
			return flag, true
		}
	}
	return Flag{}, false
}

// Value finds a key of the top level of the kubelet's configuration files, and the file that counts.
func (f *Files) Value(key string) (value, path string) {
	for _, c := range slices.Backward(f.Configs) {
		values, err := parseConfig(c.Data)
		if err != nil {
			continue // Read refused it
		}
		if v, ok := values[key]; ok && v != nil {
			return fmt.Sprint(v), c.Path
		}
	}
	return "", ""
}

// Setting finds what is a flag and a key of the configuration: the flag counts. where names the place for people; all is
// "" where neither is set.
func (f *Files) Setting(flag, key string) (value, where string) {
	if set, ok := f.Flag(flag); ok {
		return set.Value, place(set)
	}
	return f.Value(key)
}

// Endpoint is the CRI socket that the kubelet is told, "" where it is told none: dockershim up to 1.23.
func (f *Files) Endpoint() (value, where string) {
	return f.Setting("container-runtime-endpoint", "containerRuntimeEndpoint")
}

// ImageEndpoint is the one for images, "" where they come from Endpoint.
func (f *Files) ImageEndpoint() (value, where string) {
	return f.Setting("image-service-endpoint", "imageServiceEndpoint")
}

func place(f Flag) string {
	if f.Variable != "" {
		return f.File + " (" + f.Variable + ")"
	}
	return f.File
}
