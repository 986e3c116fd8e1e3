package config

import "path/filepath"

// oldCNICache is where kubelet's dockershim and, unless --cni-cache-dir says otherwise, cri-dockerd keep libcni's cache.
const oldCNICache = "/var/lib/cni/cache"

// ShimRoot is the folder of the shim that Compatibility names, "" where it names none.
func (c *Config) ShimRoot() string {
	switch {
	case c.Compatibility == "":
		return ""
	case c.CompatibilityRoot != "":
		return c.CompatibilityRoot
	}
	return filepath.Join("/var/lib", c.Compatibility)
}

// DockerLog is how logs are made of Docker's: container_log, but the old shim's links where it is to find them.
func (c *Config) DockerLog() string {
	if c.Compatibility != "" {
		return "json-file"
	}
	return c.ContainerLog
}

// CNICacheDir is where libcni's cache of new pods is.
func (c *Config) CNICacheDir() string {
	switch {
	case c.Network.CacheDir != "":
		return c.Network.CacheDir
	case c.Compatibility != "":
		return oldCNICache
	}
	return filepath.Join(c.RootDir, "cni")
}
