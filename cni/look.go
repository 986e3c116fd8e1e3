package cni

// Found is what a daemon with these folders would use.
type Found struct {
	File    string   `json:"file,omitempty"` // "" where there is no usable configuration
	Network string   `json:"network,omitempty"`
	Plugins []string `json:"plugins,omitempty"` // types, those of address management too
	// Missing names the plugins that are in no folder, Problem what is wrong with files; "" where nothing is.
	Missing string `json:"missing,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// Look reads the configuration as New does, but makes and runs nothing.
func Look(confDir string, binDirs []string) Found {
	var found Found
	chosen, problem := load(confDir, binDirs, nil)
	if problem != nil {
		found.Problem = problem.Error()
	}
	if chosen == nil {
		return found
	}
	found.File, found.Network = chosen.file, chosen.list.Name
	for _, plugin := range chosen.list.Plugins {
		found.Plugins = append(found.Plugins, binaries(plugin)...)
	}
	if chosen.missing != nil {
		found.Missing = chosen.missing.Error()
	}
	return found
}
