package main

import (
	"path/filepath"
	"slices"

	"crishim/config"
	"crishim/migrate"
)

// adoptOptions are where pods without a record are looked for: in our own caches first, for those whose record was lost; the
// one below root_dir is not in use while an old shim's is shared.
func adoptOptions(c *config.Config) migrate.AdoptOptions {
	o := migrate.AdoptOptions{Engine: config.EngineDocker, Roots: slices.Clone(c.Adopt.Roots)}
	if root := c.ShimRoot(); root != "" && !slices.Contains(o.Roots, root) {
		o.Roots = append(o.Roots, root)
	}
	for _, dir := range append([]string{c.CNICacheDir(), filepath.Join(c.RootDir, "cni")}, c.Adopt.CNICacheDirs...) {
		if !slices.Contains(o.CNICacheDirs, dir) {
			o.CNICacheDirs = append(o.CNICacheDirs, dir)
		}
	}
	return o
}
