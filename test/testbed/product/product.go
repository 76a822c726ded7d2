// SPDX-License-Identifier: Apache-2.0

// Package product installs what the project makes into a testbed cluster, as an operator would: images built from this
// checkout, the controller from its Helm chart.
package product

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/cli"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release"
	"helm.sh/helm/v4/pkg/release/common"
	"helm.sh/helm/v4/pkg/storage/driver"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/poll"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// Release and Admission are the names of the charts of controller and admission, and of their releases. Both are
// installed into Namespace.
const (
	Release   = "gardener-extension-registry-cache"
	Admission = "gardener-extension-registry-cache-admission"
	Namespace = "extension-registry-cache"
)

const (
	controllerImage = "gardener-extension-registry-cache"
	cacheImage      = "registry-cache"
	stockImage      = "distribution"
)

// Distribution is the engine that is the stock registry.
const Distribution = "distribution"

// replacedTimeout is what a pod has to end, and some seconds.
const replacedTimeout = time.Minute

// installTimeout bounds the wait for the controller to be ready.
const installTimeout = 2 * time.Minute

// Options are what an operator would write into the values of the chart.
type Options struct {
	// CABundle (PEM) are the roots that the caches trust for their upstreams beside the public ones.
	CABundle []byte
	// Engine is the program that serves the caches; empty means the chart's default. The stock registry is only built and
	// loaded if it is asked for.
	Engine string
	// Checkout is the folder of the sources to build and install, another version for example; empty means this checkout.
	Checkout string
}

// Install builds the programs and their images, loads the images into every node and installs or upgrades the charts. A
// second call with the same options and unchanged sources changes nothing in the cluster.
func Install(ctx context.Context, cluster *kindcluster.Cluster, progress *workspace.Progress, o Options) error {
	root, err := workspace.Root()
	if err != nil {
		return err
	}
	if o.Checkout != "" {
		root = o.Checkout
	}
	var images map[string]image
	if err := progress.Step("Building the controller, the cache server and their images", func() (err error) {
		images, err = build(ctx, root, o)
		return err
	}); err != nil {
		return err
	}
	if err := progress.Step("Loading the images into the nodes", func() error {
		for _, image := range images {
			if err := cluster.LoadArchive(ctx, image.archive); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for _, chart := range charts(images, o) {
		if err := progress.Step("Installing the chart "+chart.name, func() error {
			return chart.install(ctx, cluster, filepath.Join(root, "charts", chart.name))
		}); err != nil {
			return err
		}
	}
	return waitForReplaced(ctx, cluster)
}

// waitForReplaced waits until the pods that an upgrade has replaced are gone. They serve for some seconds more, and one of
// them leads until then: it would reconcile with the former image and configuration.
func waitForReplaced(ctx context.Context, cluster *kindcluster.Cluster) error {
	config, err := cluster.RESTConfig()
	if err != nil {
		return err
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	return poll.Until(ctx, time.Second, replacedTimeout, func(ctx context.Context) error {
		pods, err := clients.CoreV1().Pods(Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, pod := range pods.Items {
			if pod.DeletionTimestamp != nil {
				return fmt.Errorf("pod %s of the former release is still there", pod.Name)
			}
		}
		return nil
	})
}

// image is one image of the product.
type image struct{ repository, tag, archive string }

// build runs the commands behind "make images" and returns what they wrote, by image name.
func build(ctx context.Context, root string, o Options) (map[string]image, error) {
	state, err := workspace.StateDir()
	if err != nil {
		return nil, err
	}
	if o.Checkout != "" {
		state = o.Checkout // what is built of it goes with it
	}
	binaries := filepath.Join(state, "bin")
	if err := gobuild.Build(ctx, gobuild.Options{
		Dir: root, Packages: []string{"./cmd/" + controllerImage, "./cmd/" + cacheImage}, Output: binaries + "/",
	}); err != nil {
		return nil, err
	}
	names := []string{controllerImage, cacheImage}
	if o.Engine == Distribution {
		names = append(names, stockImage)
		if err := gobuild.Build(ctx, gobuild.Options{
			Dir: filepath.Join(root, "hack", "distribution"), Packages: []string{"tool"}, Output: filepath.Join(binaries, stockImage),
		}); err != nil {
			return nil, err
		}
	}
	args := []string{"run", "./hack/images", "--binaries", binaries, "--output", filepath.Join(state, "images")}
	cmd := exec.CommandContext(ctx, "go", append(args, names...)...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("writing images: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return parseImages(string(output), names)
}

// parseImages reads what "make images" prints, "repository:tag archive" on each line, and wants the images of all names.
func parseImages(output string, names []string) (map[string]image, error) {
	images := map[string]image{}
	for line := range strings.Lines(output) {
		reference, archive, ok := strings.Cut(strings.TrimSpace(line), " ")
		colon := strings.LastIndex(reference, ":")
		if !ok || colon < 0 {
			return nil, fmt.Errorf("writing images: unexpected line %q", line)
		}
		repository := reference[:colon]
		images[repository[strings.LastIndex(repository, "/")+1:]] = image{repository, reference[colon+1:], archive}
	}
	for _, name := range names {
		if _, ok := images[name]; !ok {
			return nil, fmt.Errorf("writing images: no image %s in %q", name, output)
		}
	}
	return images, nil
}

// chart is a Helm chart of this checkout. Its release has its name.
type chart struct {
	name   string
	values map[string]any
}

// charts are installed in this order, all into Namespace.
func charts(images map[string]image, o Options) []chart {
	return []chart{{Release, values(images, o)}, {Admission, admissionValues(images)}}
}

// values are those of the controller's chart: the built images, and the choices of o.
func values(images map[string]image, o Options) map[string]any {
	overwrite := "images:\n"
	for _, name := range []string{cacheImage, stockImage} {
		if engine, ok := images[name]; ok {
			overwrite += fmt.Sprintf("- name: %s\n  repository: %s\n  tag: %q\n", name, engine.repository, engine.tag)
		}
	}
	config := map[string]any{"caBundle": string(o.CABundle)}
	if o.Engine != "" {
		config["engine"] = o.Engine
	}
	controller := images[controllerImage]
	return map[string]any{
		"image":                map[string]any{"repository": controller.repository, "tag": controller.tag},
		"imageVectorOverwrite": overwrite,
		"config":               config,
	}
}

// admissionValues are those of the chart for a garden that is not a virtual cluster.
func admissionValues(images map[string]image) map[string]any {
	controller := images[controllerImage]
	return map[string]any{"runtime": map[string]any{
		"image": map[string]any{"repository": controller.repository, "tag": controller.tag},
	}}
}

// install installs or upgrades the release and waits until it is ready.
func (c chart) install(ctx context.Context, cluster *kindcluster.Cluster, dir string) error {
	loaded, err := loader.LoadDir(dir)
	if err != nil {
		return fmt.Errorf("loading chart %s: %w", dir, err)
	}
	settings := cli.New()
	settings.KubeConfig = cluster.Kubeconfig()
	settings.SetNamespace(Namespace)
	// Helm logs each object at info level; what goes wrong comes back as an error.
	configuration := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	if err := configuration.Init(settings.RESTClientGetter(), Namespace, ""); err != nil {
		return fmt.Errorf("connecting helm to the cluster: %w", err)
	}

	installed, err := settle(configuration, c.name)
	if err != nil {
		return fmt.Errorf("reading the history of release %s: %w", c.name, err)
	}
	if installed {
		upgrade := action.NewUpgrade(configuration)
		upgrade.Namespace = Namespace
		upgrade.WaitStrategy, upgrade.Timeout = kube.StatusWatcherStrategy, installTimeout
		// The controller writes the CA into its webhook configuration; an operator's edit is put right as well.
		upgrade.ForceConflicts = true
		_, err = upgrade.RunWithContext(ctx, c.name, loaded, c.values)
	} else {
		install := action.NewInstall(configuration)
		install.ReleaseName, install.Namespace, install.CreateNamespace = c.name, Namespace, true
		install.WaitStrategy, install.Timeout = kube.StatusWatcherStrategy, installTimeout
		_, err = install.RunWithContext(ctx, loaded, c.values)
	}
	if err != nil {
		return fmt.Errorf("installing release %s: %w", c.name, err)
	}
	return nil
}

// settle tells whether there is a release to upgrade. What an interrupted run left pending is uninstalled first: Helm
// refuses to go on from it ("another operation is in progress").
func settle(configuration *action.Configuration, releaseName string) (installed bool, err error) {
	history, err := action.NewHistory(configuration).Run(releaseName)
	if errors.Is(err, driver.ErrReleaseNotFound) || err == nil && len(history) == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	last, version := "", 0
	for _, entry := range history {
		accessor, err := release.NewAccessor(entry)
		if err != nil {
			return false, err
		}
		if accessor.Version() > version {
			last, version = accessor.Status(), accessor.Version()
		}
	}
	if !common.Status(last).IsPending() {
		return true, nil
	}
	uninstall := action.NewUninstall(configuration)
	uninstall.WaitStrategy, uninstall.Timeout = kube.StatusWatcherStrategy, installTimeout
	if _, err := uninstall.Run(releaseName); err != nil {
		return false, fmt.Errorf("uninstalling what an interrupted run left: %w", err)
	}
	return false, nil
}
