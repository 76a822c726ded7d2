// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/registry-cache/extension/hack/ociimage"
)

// imageArchive writes the container images that kubeadm asks for to archive. The names are kubeadm's; etcd and CoreDNS
// behind them are the versions of hack/kind.
func (b *builder) imageArchive(ctx context.Context, programs map[string]string, archive string) error {
	version, err := b.kubernetesVersion(ctx)
	if err != nil {
		return err
	}
	refs, err := kubeadmImages(ctx, programs["kubeadm"], version)
	if err != nil {
		return err
	}
	kind, err := b.goCommand(ctx, b.root, "list", "-m", "-f", "{{.Dir}}", kindModule)
	if err != nil {
		return err
	}
	sandbox, err := sandboxImage(filepath.Join(kind, "images", "base", "files", containerdConfigPath))
	if err != nil {
		return err
	}
	proxyLayer := filepath.Join(filepath.Dir(archive), "kube-proxy.tar")
	if err := proxyImageLayer(ctx, programs["kube-proxy"], proxyLayer); err != nil {
		return err
	}
	images := map[string]v1.Image{}
	for _, ref := range append(refs, sandbox) {
		cfg, err := imageConfig(ref, programs, proxyLayer)
		if err != nil {
			return err
		}
		if images[ref], err = ociimage.Build(cfg); err != nil {
			return fmt.Errorf("building %s: %w", ref, err)
		}
	}
	return ociimage.WriteArchive(archive, images)
}

// kubeadmImages asks kubeadm which images it will use.
func kubeadmImages(ctx context.Context, kubeadm, version string) ([]string, error) {
	cmd := exec.CommandContext(ctx, kubeadm, "config", "images", "list", "--kubernetes-version", version)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("asking kubeadm for its images: %w: %s", err, lastLines(stderr.Bytes()))
	}
	return strings.Fields(string(out)), nil
}

// imageConfig tells what is in an image that kubeadm or containerd asks for. The static pods call their program by its
// bare name, so it must be in a folder of PATH.
func imageConfig(ref string, programs map[string]string, proxyLayer string) (ociimage.Config, error) {
	parsed, err := name.ParseReference(ref, name.StrictValidation)
	if err != nil {
		return ociimage.Config{}, fmt.Errorf("reading the image reference %q: %w", ref, err)
	}
	repositoryPath := parsed.Context().RepositoryStr()
	program := repositoryPath[strings.LastIndex(repositoryPath, "/")+1:]
	path := "/usr/local/bin/" + program
	switch program {
	case "kube-proxy":
		return ociimage.Config{LayerTars: []string{proxyLayer}, Entrypoint: []string{path}}, nil
	case "kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd":
	case "coredns", "pause":
		path = "/" + program
	default:
		return ociimage.Config{}, fmt.Errorf("kubeadm wants the image %s, and the testbed has no program for it", ref)
	}
	return ociimage.Config{
		Files:      []ociimage.File{{Path: path, Mode: 0o755, Source: programs[program]}},
		Entrypoint: []string{path},
	}, nil
}

// proxyImageLayer writes kube-proxy with the programs it calls as one archive, because an image of several layers
// cannot be unpacked while the node image is made.
func proxyImageLayer(ctx context.Context, kubeProxy, layer string) error {
	packages := layer + ".packages"
	if err := ExtractPackages(ctx, packages, kubeProxyPackages()...); err != nil {
		return err
	}
	files := []file{{path: "/usr/local/bin/kube-proxy", mode: 0o755, source: kubeProxy}}
	// The links that the alternatives of the package would be.
	for _, program := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		files = append(files, file{path: "/usr/sbin/" + program, link: "xtables-nft-multi"})
	}
	return replace(layer, func(out io.Writer) error {
		return withFile(packages, func(archive io.Reader) error {
			in, joined := tar.NewReader(archive), tar.NewWriter(out)
			for {
				header, err := in.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					return fmt.Errorf("reading the packages' files: %w", err)
				}
				if err := joined.WriteHeader(header); err != nil {
					return err
				}
				if _, err := io.Copy(joined, in); err != nil {
					return err
				}
			}
			if err := writeFiles(joined, files); err != nil {
				return err
			}
			return joined.Close()
		})
	})
}
