package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"

	"crishim/internal/atomicfile"
	"crishim/internal/process"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"
)

// TemplateTarget is the file in the configuration directory that SetPodCIDRs writes from Options.Template.
const TemplateTarget = "10-crishim.conflist"

// SetPodCIDRs takes the node's pod ranges of CRI UpdateRuntimeConfig: plugins with the ipRanges capability get them
// from the next Plan on. With Options.Template, TemplateTarget is written anew unless the directory holds a configuration
// of somebody else. ErrInvalidArgument for what is no CIDR.
//
// A kubelet tells them once, and again only when they change: Options.PodCIDRFile has them for the next New. Where they
// cannot be kept they are used, and the error has the kubelet tell them again.
func (n *Network) SetPodCIDRs(cidrs []string) error {
	if err := checkCIDRs(cidrs); err != nil {
		return err
	}
	n.telling.Lock()
	defer n.telling.Unlock()
	if err := n.usePodCIDRs(cidrs); err != nil {
		return err
	}
	if err := keepPodCIDRs(n.opts.PodCIDRFile, cidrs); err != nil {
		return fmt.Errorf("keep the pod CIDRs for the next start (they are in use): %w", err)
	}
	return nil
}

// firstPodCIDRs takes the ranges that a kubelet told last, or else the configured ones.
func (n *Network) firstPodCIDRs() error {
	told, err := keptPodCIDRs(n.opts.PodCIDRFile)
	if process.Starved(err) {
		return err
	}
	if err != nil {
		klog.ErrorS(err, "What the kubelet told cannot be read: the configured pod CIDRs hold until it tells others", "configured", n.opts.PodCIDRs)
	}
	if len(told) == 0 {
		return n.usePodCIDRs(n.opts.PodCIDRs)
	}
	klog.InfoS("The pod CIDRs are those that the kubelet told last", "podCIDRs", told, "configured", n.opts.PodCIDRs, "file", n.opts.PodCIDRFile)
	n.cidrs = told
	if err := n.usePodCIDRs(told); err != nil {
		klog.ErrorS(err, "The network configuration is not written anew")
	}
	return nil
}

func (n *Network) usePodCIDRs(cidrs []string) error {
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

// podCIDRFile is what is in Options.PodCIDRFile.
type podCIDRFile struct {
	PodCIDRs []string `json:"podCIDRs"`
}

func keepPodCIDRs(path string, cidrs []string) error {
	if path == "" {
		return nil
	}
	data, err := json.Marshal(podCIDRFile{cidrs})
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return atomicfile.Write(path, data, 0o600)
}

// keptPodCIDRs are none where none were kept.
func keptPodCIDRs(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var kept podCIDRFile
	if err == nil {
		err = json.Unmarshal(data, &kept)
	}
	if err == nil {
		err = checkCIDRs(kept.PodCIDRs)
	}
	if err != nil {
		return nil, fmt.Errorf("read the pod CIDRs in %s: %w", path, err)
	}
	return kept.PodCIDRs, nil
}

// PodCIDRs are the ranges in use.
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
	other, err := otherConfig(n.opts.ConfDir)
	if err != nil {
		return err
	}
	if other != "" {
		klog.InfoS("The network configuration template is not used, there is a configuration", "file", other)
		return nil
	}
	target := filepath.Join(n.opts.ConfDir, TemplateTarget)
	rendered, err := render(n.opts.Template, cidrs)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(target); err == nil && bytes.Equal(old, rendered) {
		return nil
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(n.opts.ConfDir, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(target, rendered, 0o644)
}

// otherConfig is a network's configuration of somebody else, "" where there is none.
func otherConfig(confDir string) (string, error) {
	files, err := libcni.ConfFiles(confDir, []string{".conf", ".conflist", ".json"})
	for _, file := range files {
		if file == filepath.Join(confDir, TemplateTarget) {
			continue
		}
		if list, err := parseFile(file); err == nil && onlyLoopback(list) {
			continue
		}
		return file, nil
	}
	return "", err
}

// CheckTemplate says what keeps a network configuration from being made of a template for these ranges, where it would be used.
func CheckTemplate(path, confDir string, cidrs []string) error {
	if other, err := otherConfig(confDir); err != nil || other != "" {
		return err
	}
	_, err := render(path, cidrs)
	return err
}

// render makes a configuration that can be used.
func render(path string, cidrs []string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	parsed, err := template.New(filepath.Base(path)).Parse(string(text))
	if err != nil {
		return nil, err
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
		return nil, err
	}
	if _, err := parseConfig(rendered.Bytes()); err != nil {
		return nil, err
	}
	return rendered.Bytes(), nil
}
