// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// recipe is the version of what this package does with its inputs. It is raised with every change of the code that
// changes the image: the packages' files and the scripts are inputs of their own.
const recipe = "2"

// hashLength is the number of hexadecimal digits in tags and file names: enough to tell the inputs of one machine apart.
const hashLength = 16

// inputs are the named things that decide about a result, in order.
type inputs []input

type input struct{ name, value string }

// hash returns hashLength hexadecimal digits. Names and values are length-prefixed, so that no two lists are alike.
func (in inputs) hash() string {
	h := sha256.New()
	for _, i := range in {
		fmt.Fprintf(h, "%d:%s%d:%s", len(i.name), i.name, len(i.value), i.value)
	}
	return hex.EncodeToString(h.Sum(nil))[:hashLength]
}

// fileInputs adds the content of the files, relative to dir.
func fileInputs(dir string, paths ...string) (inputs, error) {
	var in inputs
	for _, p := range paths {
		content, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			return nil, err
		}
		in = append(in, input{p, string(content)})
	}
	return in, nil
}

// folderInputs adds all files below dir with their content and whether they are executable.
func folderInputs(dir string) (inputs, error) {
	var in inputs
	files, err := folder(dir, "/", executableBit)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		content, err := os.ReadFile(f.source)
		if err != nil {
			return nil, err
		}
		in = append(in, input{fmt.Sprintf("%s %o", f.path, f.mode), string(content)})
	}
	return in, nil
}

// baseInputs are the inputs of the image that is built from source, before the overlay.
func (b *builder) baseInputs(ctx context.Context) (inputs, error) {
	release, err := hostRelease()
	if err != nil {
		return nil, err
	}
	in := inputs{
		{"recipe", recipe},
		{"architecture", runtime.GOARCH},
		{"distribution", release.id + " " + release.codename},
		{"packages", strings.Join(nodePackages(), " ")},
		{"kube-proxy packages", strings.Join(kubeProxyPackages(), " ")},
	}
	kind, err := b.goCommand(ctx, b.root, "list", "-m", "-f", "{{.Path}} {{.Version}}", kindModule)
	if err != nil {
		return nil, err
	}
	in = append(in, input{"kind", kind})
	for _, m := range modules() {
		of, err := b.moduleInputs(ctx, m)
		if err != nil {
			return nil, err
		}
		in = append(in, input{m.dir, of.hash()})
	}
	scripts, err := fileInputs(b.root, baseScript, loadScript)
	return append(in, scripts...), err
}

// overlayHash is the hash of what is put on a base image.
func (b *builder) overlayHash() (string, error) {
	files, err := folderInputs(filepath.Join(b.root, overlayDir))
	if err != nil {
		return "", err
	}
	script, err := fileInputs(b.root, nodeScript)
	if err != nil {
		return "", err
	}
	return append(append(inputs{{"recipe", recipe}}, files...), script...).hash(), nil
}

// executableBit gives an executable file mode 0755, every other one 0644, as git does.
func executableBit(_ string, info fs.FileInfo) fs.FileMode {
	if info.Mode()&0o100 != 0 {
		return 0o755
	}
	return 0o644
}
