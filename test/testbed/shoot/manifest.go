// SPDX-License-Identifier: Apache-2.0

package shoot

import (
	"errors"
	"fmt"
	"runtime"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/test/testbed/gardener"
)

const (
	defaultPool = "worker"
	// maxManifest bounds a manifest in bytes; etcd takes no larger object either.
	maxManifest = 1 << 20
)

// Parse decodes a Shoot manifest in YAML or JSON. Unknown and duplicate fields are errors that name the field's path,
// except in the providerConfig of an extension, which only the extension can check. All else is for Gardener's API
// server to judge.
func Parse(manifest []byte) (*gardencorev1beta1.Shoot, error) {
	if len(manifest) > maxManifest {
		return nil, fmt.Errorf("decoding the Shoot manifest: it has %d bytes, at most %d are taken", len(manifest), maxManifest)
	}
	content, err := yaml.YAMLToJSONStrict(manifest)
	if err != nil {
		return nil, fmt.Errorf("decoding the Shoot manifest: %w", err)
	}
	shoot := &gardencorev1beta1.Shoot{}
	strict, err := kjson.UnmarshalStrict(content, shoot)
	if err = errors.Join(append([]error{err}, strict...)...); err != nil {
		return nil, fmt.Errorf("decoding the Shoot manifest: %w", err)
	}
	if err := validate(shoot).ToAggregate(); err != nil {
		return nil, fmt.Errorf("checking the Shoot manifest: %w", err)
	}
	return shoot, nil
}

func validate(shoot *gardencorev1beta1.Shoot) field.ErrorList {
	var errs field.ErrorList
	if want := gardencorev1beta1.SchemeGroupVersion.String(); shoot.APIVersion != want {
		errs = append(errs, field.NotSupported(field.NewPath("apiVersion"), shoot.APIVersion, []string{want}))
	}
	if shoot.Kind != "Shoot" {
		errs = append(errs, field.NotSupported(field.NewPath("kind"), shoot.Kind, []string{"Shoot"}))
	}

	metadata := field.NewPath("metadata")
	if shoot.Name == "" {
		errs = append(errs, field.Required(metadata.Child("name"), "the Shoot needs a name"))
	}
	if shoot.Namespace == "" {
		errs = append(errs, field.Required(metadata.Child("namespace"), "the Shoot needs the namespace of a project: "+gardener.ProjectNamespace))
	}
	return errs
}

// complete fills in what the owner of a complete Shoot would have written for the testbed's landscape, as
// example/shoot.yaml does. Nothing that is in the manifest changes. nodes is the number of nodes, all of them in the
// Shoot's worker pool.
func complete(shoot *gardencorev1beta1.Shoot, nodes int32) {
	spec := &shoot.Spec
	if spec.CloudProfile == nil {
		spec.CloudProfile = &gardencorev1beta1.CloudProfileReference{Kind: v1beta1constants.CloudProfileReferenceKindCloudProfile, Name: gardener.Local}
	}
	fillPointer(&spec.CredentialsBindingName, gardener.Local)
	fill(&spec.Region, gardener.Local)
	fill(&spec.Provider.Type, gardener.Local)

	if spec.Networking == nil {
		spec.Networking = &gardencorev1beta1.Networking{}
	}
	fillPointer(&spec.Networking.Type, gardener.Local)
	// The ranges of kind, which the cluster is made with.
	fillPointer(&spec.Networking.Pods, "10.244.0.0/16")
	fillPointer(&spec.Networking.Services, "10.96.0.0/16")

	if len(spec.Provider.Workers) == 0 {
		spec.Provider.Workers = []gardencorev1beta1.Worker{{Name: defaultPool, Minimum: nodes, Maximum: nodes}}
	}
	pool := &spec.Provider.Workers[0]
	fill(&pool.Name, defaultPool)
	fill(&pool.Machine.Type, gardener.Local)
	fillPointer(&pool.Machine.Architecture, runtime.GOARCH)
}

func fill(at *string, value string) {
	if *at == "" {
		*at = value
	}
}

func fillPointer(at **string, value string) {
	if *at == nil {
		*at = new(value)
	}
}
