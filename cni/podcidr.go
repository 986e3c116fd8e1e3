package cni

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"

	"crishim/internal/atomicfile"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"
)

// TemplateTarget is the file in the configuration directory that SetPodCIDRs writes from Options.Template.
const TemplateTarget = "10-crishim.conflist"

// SetPodCIDRs takes the node's pod ranges of CRI UpdateRuntimeConfig: plugins with the ipRanges capability get them
// from the next Plan on. With Options.Template, TemplateTarget is written anew unless the directory holds a configuration
// of somebody else. ErrInvalidArgument for what is no CIDR.
func (n *Network) SetPodCIDRs(cidrs []string) error {
	if err := checkCIDRs(cidrs); err != nil {
		return err
	}
	if n.opts.Template != "" && len(cidrs) > 0 {
		if err := n.writeTemplate(cidrs); err != nil {
			return fmt.Errorf("network configuration from %s: %w", n.opts.Template, err)
		}
		n.reload()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cidrs = cidrs
	return nil
}

// PodCIDRs are the ranges last set.
func (n *Network) PodCIDRs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cidrs
}

func checkCIDRs(cidrs []string) error {
	for _, cidr := range cidrs {
		if _, err := netip.ParsePrefix(cidr); err != nil {
			return fmt.Errorf("pod CIDR: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// templateData has the names of containerd's template, so that its files can be used.
type templateData struct {
	PodCIDR       string
	PodCIDRRanges []string
	Routes        []string
}

func (n *Network) writeTemplate(cidrs []string) error {
	target := filepath.Join(n.opts.ConfDir, TemplateTarget)
	files, err := libcni.ConfFiles(n.opts.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return err
	}
	for _, file := range files {
		if file != target {
			klog.InfoS("The network configuration template is not used, there is a configuration", "file", file)
			return nil
		}
	}
	text, err := os.ReadFile(n.opts.Template)
	if err != nil {
		return err
	}
	parsed, err := template.New(filepath.Base(n.opts.Template)).Parse(string(text))
	if err != nil {
		return err
	}
	data := templateData{PodCIDR: cidrs[0], PodCIDRRanges: cidrs}
	for _, cidr := range cidrs {
		route := "0.0.0.0/0"
		if netip.MustParsePrefix(cidr).Addr().Is6() {
			route = "::/0"
		}
		data.Routes = append(data.Routes, route)
	}
	var rendered bytes.Buffer
	if err := parsed.Execute(&rendered, data); err != nil {
		return err
	}
	if _, err := parseConfig(rendered.Bytes()); err != nil {
		return err
	}
	if old, err := os.ReadFile(target); err == nil && bytes.Equal(old, rendered.Bytes()) {
		return nil
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(n.opts.ConfDir, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(target, rendered.Bytes(), 0o644)
}
