// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/registry-cache/extension/test/testbed/poll"
)

// fieldOwner names this package in the managed fields of what it applies.
const fieldOwner = client.FieldOwner("registry-cache-testbed")

// crdTimeout bounds the wait for kube-apiserver to serve new kinds.
const crdTimeout = time.Minute

// crdFiles returns those files in example/seed-crds of Gardener's module that a Shoot with extensions, and the
// observability configuration of an extension, need.
func crdFiles() []string {
	return []string{
		"10-crd-extensions.gardener.cloud_clusters.yaml",
		"10-crd-extensions.gardener.cloud_extensions.yaml",
		"10-crd-extensions.gardener.cloud_operatingsystemconfigs.yaml",
		"10-crd-resources.gardener.cloud_managedresources.yaml",
		"10-crd-monitoring.coreos.com_prometheusrules.yaml",
		"10-crd-monitoring.coreos.com_scrapeconfigs.yaml",
		"10-crd-autoscaling.k8s.io_verticalpodautoscalers.yaml",
	}
}

// applyCRDs applies Gardener's CRDs and waits until their kinds are served.
func applyCRDs(ctx context.Context, c client.Client, moduleDir string) error {
	var names []string
	for _, file := range crdFiles() {
		objects, err := readManifest(filepath.Join(moduleDir, "example", "seed-crds", file))
		if err != nil {
			return err
		}
		for _, object := range objects {
			if err := apply(ctx, c, object); err != nil {
				return err
			}
			names = append(names, object.GetName())
		}
	}
	for _, name := range names {
		if err := poll.Until(ctx, 200*time.Millisecond, crdTimeout, func(ctx context.Context) error {
			crd := &apiextensionsv1.CustomResourceDefinition{}
			if err := c.Get(ctx, client.ObjectKey{Name: name}, crd); err != nil {
				return err
			}
			for _, condition := range crd.Status.Conditions {
				if condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue {
					return nil
				}
			}
			return errors.New("it is not established")
		}); err != nil {
			return fmt.Errorf("waiting for CRD %s: %w", name, err)
		}
	}
	return nil
}

// readManifest reads the objects of a YAML file with one or more documents.
func readManifest(path string) ([]*unstructured.Unstructured, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var objects []*unstructured.Unstructured
	reader := yaml.NewYAMLReader(bufio.NewReader(f))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, &object.Object); err != nil {
			return nil, fmt.Errorf("decoding %s: %w", path, err)
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
	if len(objects) == 0 {
		return nil, fmt.Errorf("reading %s: it holds no object", path)
	}
	return objects, nil
}

// apply makes the object in the cluster equal to object in all fields that object sets, by server-side apply: the
// largest CRDs do not fit into the annotation of a client-side one.
func apply(ctx context.Context, c client.Client, object client.Object) error {
	gvk, err := apiutil.GVKForObject(object, c.Scheme())
	if err != nil {
		return err
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return fmt.Errorf("converting %s %s: %w", gvk.Kind, client.ObjectKeyFromObject(object), err)
	}
	desired := &unstructured.Unstructured{Object: content}
	desired.SetGroupVersionKind(gvk)
	// Typed objects carry an empty status, which would claim it.
	unstructured.RemoveNestedField(desired.Object, "status")
	if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(desired), fieldOwner, client.ForceOwnership); err != nil {
		return fmt.Errorf("applying %s %s: %w", gvk.Kind, client.ObjectKeyFromObject(object), err)
	}
	return nil
}
